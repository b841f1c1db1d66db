"""Measure how fast something of this project is on this machine, beside what it is compared with.

python scripts/benchmark.py data|lam|vla [--quick] [--only 1,3] [--out FILE.json]
"""

import argparse
from functools import partial

import numpy as np
import torch

from core.benchmark import data
from core.device import default_device
from core.run import run_script
from core.vision import load_encoder
from lam.benchmark import run as lam
from lam.benchmark.sizes import FULL, QUICK
from lam.label import codes_of
from vla.benchmark import run as vla
from vla.benchmark.loading import Labeller


def labeller(is_quick: bool, is_float32: bool) -> Labeller:
    """The latent action model that `lam` measures, from frames to code indices."""
    sizes, device = QUICK if is_quick else FULL, default_device()
    precision = {"dtype": "float32"} if is_float32 else {}
    tower = load_encoder(sizes.tower.model_copy(update=precision), device)
    model = sizes.new_model().to(device).eval()

    def label(frames: np.ndarray) -> np.ndarray:
        features = tower(torch.from_numpy(frames).flatten(0, 1).to(device)).unflatten(0, frames.shape[:2])
        return model.label(features).cpu().numpy() if is_float32 else codes_of(model, features.cpu().numpy())

    return label


SUBJECTS = {"data": data.benchmark, "lam": lam.benchmark, "vla": partial(vla.benchmark, labeller=labeller)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "subject", choices=SUBJECTS, help="data: reading episodes; lam, vla: training, labels, policies"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the measuring works")
    parser.add_argument("--only", default="", help="numbers of measurements, such as 1,3; all by default")
    parser.add_argument("--out", help="JSON file for the numbers")
    asked = parser.parse_args()
    only = [int(number) for number in asked.only.split(",") if number]
    for line in SUBJECTS[asked.subject](asked.quick, only, asked.out):
        print(line, flush=True)


if __name__ == "__main__":
    run_script(main)
