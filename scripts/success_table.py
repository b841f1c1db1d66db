"""Print an evaluation as a table, and write it beside its results: scripts/success_table.py DIRECTORY."""

import argparse

from core.run import run_script
from eval.success_table import write_success_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="directory of an evaluation, with results.jsonl")
    print(write_success_table(parser.parse_args().directory), end="")


if __name__ == "__main__":
    run_script(main)
