"""Measure how fast something of this project is on this machine, beside what it is compared with.

python scripts/benchmark.py data|eval|lam|vla [--quick] [--only 1,3] [--out FILE.json] [--policy DIR]
"""

import argparse
from pkgutil import resolve_name
from typing import Any

from core.run import run_script

# Processes that are measured import this file again, so what is heavy is imported where it is needed.
SUBJECTS = {
    "data": "core.benchmark.data:benchmark",
    "eval": "eval.speed.run:benchmark",
    "lam": "lam.benchmark.run:benchmark",
    "vla": "vla.benchmark.run:benchmark",
}


def labeller(is_quick: bool, is_float32: bool) -> Any:
    """The latent action model that `lam` measures, from frames to code indices."""
    import torch

    from core.device import default_device
    from core.vision import load_encoder
    from lam.benchmark.sizes import FULL, QUICK
    from lam.label import codes_of

    sizes, device = QUICK if is_quick else FULL, default_device()
    precision = {"dtype": "float32"} if is_float32 else {}
    tower = load_encoder(sizes.tower.model_copy(update=precision), device)
    model = sizes.new_model().to(device).eval()

    def label(frames: Any) -> Any:
        features = tower(torch.from_numpy(frames).flatten(0, 1).to(device)).unflatten(0, frames.shape[:2])
        return model.label(features).cpu().numpy() if is_float32 else codes_of(model, features.cpu().numpy())

    return label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS, help="reading data; closed loop; latent actions; policies")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the measuring works")
    parser.add_argument("--only", default="", help="numbers of measurements, such as 1,3; all by default")
    parser.add_argument("--out", help="JSON file for the numbers")
    parser.add_argument("--policy", default="", help="of eval: a fine-tuned policy to act; by default random actions")
    asked = parser.parse_args()
    only = [int(number) for number in asked.only.split(",") if number]
    if asked.policy and asked.subject != "eval":
        parser.error(f"--policy is for eval; {asked.subject} makes its own")
    more = {"vla": {"labeller": labeller}, "eval": {"policy": asked.policy, "make_policy": "vla.policy:load_policy"}}
    for line in resolve_name(SUBJECTS[asked.subject])(asked.quick, only, asked.out, **more.get(asked.subject, {})):
        print(line, flush=True)


if __name__ == "__main__":
    run_script(main)
