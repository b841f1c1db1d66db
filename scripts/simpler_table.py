"""Check SIMPLER's files, or print the table of an evaluation: scripts/simpler_table.py [DIRECTORY].

Without a directory it says where the files are looked for and whether they are official; status 1 and the commands that
get them where they are absent. With one it prints the evaluation's table beside published rows and writes simpler.md.
"""

import argparse

from core.run import run_script, say
from eval.simpler_assets import asset_folder, require_assets
from eval.simpler_table import write_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", help="directory of an evaluation, with results.jsonl")
    directory = parser.parse_args().directory
    if directory is None:
        say(f"SIMPLER's files in {asset_folder()}: {require_assets()}")
    else:
        print(write_table(directory), end="")


if __name__ == "__main__":
    run_script(main)
