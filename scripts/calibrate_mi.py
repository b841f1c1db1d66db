"""Hold every estimator of mutual information to laws with known truth; goes on where it stopped.

python scripts/calibrate_mi.py [--key value ...]

Writes docs/calibration.md, docs/calibration.png and docs/results/calibration/results.jsonl; an hour on one core.
"""

import os

from core.config import parse_command_line
from core.run import run_script


def main() -> None:
    # Many small matrices: more threads only wait for each other. Before numpy is imported, or it has no effect.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from lam.audit.calibration import CalibrationConfig, calibrate

    calibrate(parse_command_line(CalibrationConfig, __doc__, required_config=False))


if __name__ == "__main__":
    run_script(main)
