"""Replay recorded episodes through a policy and draw what it would have done beside what was done.

python scripts/check_policy.py --policy runs/mine/policy --data runs/mine/episodes --out runs/mine/replay
"""

from core.config import parse_command_line
from core.run import run_script
from core.store import Store
from eval.replay import ReplayConfig, check
from vla.policy import load_policy


def main() -> None:
    config = parse_command_line(ReplayConfig, __doc__, required_config=False)
    check(load_policy(config.policy), Store.open(config.data), config)


if __name__ == "__main__":
    run_script(main)
