"""Measure how fast something of this project is on this machine, beside what it is compared with.

python scripts/benchmark.py data|lam [--quick] [--only 1,3] [--out FILE.json]
"""

import argparse

from core.benchmark import data
from core.run import run_script
from lam.benchmark import run as lam

SUBJECTS = {"data": data.benchmark, "lam": lam.benchmark}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS, help="data: reading episodes; lam: training")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the measuring works")
    parser.add_argument("--only", default="", help="numbers of measurements, such as 1,3; all by default")
    parser.add_argument("--out", help="JSON file for the numbers")
    asked = parser.parse_args()
    only = [int(number) for number in asked.only.split(",") if number]
    for line in SUBJECTS[asked.subject](asked.quick, only, asked.out):
        print(line, flush=True)


if __name__ == "__main__":
    run_script(main)
