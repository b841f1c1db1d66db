"""Show what the policies of the downstream experiment came to: scripts/settle_downstream.py --out DIR [--runs DIR].

scripts/settle_downstream.sh trains and evaluates them and then calls this.
"""

from core.config import parse_command_line
from core.run import run_script
from eval.downstream_page import DownstreamConfig, settle


def main() -> None:
    settle(parse_command_line(DownstreamConfig, __doc__, required_config=False))


if __name__ == "__main__":
    run_script(main)
