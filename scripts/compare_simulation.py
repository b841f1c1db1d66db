"""How well does a simulation predict the robot, by the measures of SIMPLER: scripts/compare_simulation.py TABLE.json.

Prints Pearson's correlation and the mean maximum rank violation (MMRV) of each task, and, where the file states them,
whether they come out; status 1 where they do not. The file: {"tables": {task: {"real": {policy: share}, "simulated":
{policy: share}, "pearson": optional, "mmrv": optional}}}.
"""

import argparse

from core.run import run_script
from eval.agreement import AgreementError, agreement, lines_of, not_reproduced, read_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE.json", help="success rates of policies by task, real and simulated")
    wrong = []
    for task, table in read_tables(parser.parse_args().table).items():
        found = agreement(table)
        print("\n".join(lines_of(task, table, found)), flush=True)
        wrong += [f"{name} of {task}" for name in not_reproduced(table, found)]
    if wrong:
        raise AgreementError(f"stated otherwise than computed: {', '.join(wrong)}; one of the tables is wrong")


if __name__ == "__main__":
    run_script(main)
