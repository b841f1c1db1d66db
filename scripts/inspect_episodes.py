"""Look at a store of episodes before training on it: scripts/inspect_episodes.py STORE [--out PAGE] [--json FILE].

Writes one page of HTML that needs nothing else: problems first, then what the store holds. Exit status: 0 where nothing
is fatal, 3 where training would be wrong or fail, 1 where the store cannot be read.
"""

import argparse
import json
import sys
from pathlib import Path

from core.config import ConfigError
from core.drawing import require_drawing
from core.inspection.inspection import EPISODES, Inspection, inspect_store, to_json
from core.inspection.page import write_page
from core.run import run_script, say, write_text

FATAL = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="a store, or a LeRobot v3.0 data set")
    parser.add_argument("--out", type=Path, help="the page (default: STORE_inspection.html here)")
    parser.add_argument("--json", metavar="FILE", help="the same for machines; - writes to standard output")
    parser.add_argument(
        "--episodes", default=str(EPISODES), metavar="N", help=f"look at frames of (default: {EPISODES}, or all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which episodes are looked at (default: 0)")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.episodes != "all" and not (given.episodes.isdecimal() and int(given.episodes) > 0):
        raise ConfigError(f"--episodes {given.episodes} is neither a number from 1 nor all")
    require_drawing()
    most = None if given.episodes == "all" else int(given.episodes)
    inspection = inspect_store(given.store, most, given.seed)
    page = given.out or Path(f"{given.store.resolve().name}_inspection.html")
    write_page(inspection, page, given.seed)
    report(inspection, page, given.json)
    if inspection.is_fatal:
        raise SystemExit(FATAL)


def report(inspection: Inspection, page: Path, file: str | None) -> None:
    text = json.dumps(to_json(inspection), indent=2)
    if file == "-":
        sys.stdout.write(text + "\n")
    elif file:
        write_text(file, text + "\n")
    for one in inspection.problems:
        say(f"{one.level}: {one.what}")
    say(f"the page: {page}")


if __name__ == "__main__":
    run_script(main)
