"""Hold out some episodes of a store: scripts/split_episodes.py STORE [--held-out 0.1] [--seed 0].

Episodes that were recorded once and stored twice, and scenes where they are known, stay on one side. Features, labels
and runs that were made from the store before are refused afterwards.
"""

import argparse

from core.conversion import summary
from core.run import run_script, say
from core.splits import SplitRule
from core.splitting import split_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="directory of the episodes, ours or of LeRobot v3.0")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the episodes (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="decides which (default: 0)")
    asked = parser.parse_args()
    for line in summary(split_store(asked.store, SplitRule(held_out=asked.held_out, seed=asked.seed))):
        say(line)


if __name__ == "__main__":
    run_script(main)
