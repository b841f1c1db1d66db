"""Bits that latents tell about actions, for anybody's arrays; the last line of the output is one JSON object.

python scripts/estimate_mi.py FILE.npz [--key value ...]

FILE.npz holds `actions` float (n, a), and `codes` int (n, tokens) or `latents` float (n, d) or both (the codes are the
primary estimate then, and `latents` has that of the latents); `episodes` int (n,) and `views` (n,) where known. Which
number to believe: docs/calibration.md.
"""

import json
import os
import sys

from core.config import parse_command_line
from core.run import run_script


def main() -> None:
    # Many small matrices: more threads only wait for each other. Before numpy is imported, or it has no effect.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from lam.audit.estimate import EstimateConfig, estimate_file

    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--file", *words]
    config = parse_command_line(EstimateConfig, __doc__, words, required_config=False)
    print(json.dumps(estimate_file(config)))


if __name__ == "__main__":
    run_script(main)
