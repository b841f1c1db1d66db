"""Compare arms of latent action training, paired by seed, on held-out episodes.

python scripts/compare_lams.py RUN RUN ... --store DIR --features DIR --out DIR [--key VALUE ...]

Each RUN is a finished run of scripts/train_lam.py. Runs that differ in nothing but seed are one arm; arms may differ in
one setting. A run is measured once: with more runs, the same command measures only the new ones.
"""

import json
import sys
from itertools import takewhile

from core.config import parse_command_line
from core.run import run_script
from lam.audit.comparison import CompareConfig, compare


def main() -> None:
    words = sys.argv[1:]
    runs = list(takewhile(lambda word: not word.startswith("-"), words))
    given = ["--runs", json.dumps(runs)] if runs else []
    compare(parse_command_line(CompareConfig, __doc__, [*words[len(runs) :], *given], required_config=False))


if __name__ == "__main__":
    run_script(main)
