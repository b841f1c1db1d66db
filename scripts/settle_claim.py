"""Train, measure and compare the latent action models of the claim: scripts/settle_claim.py --config FILE.

python scripts/settle_claim.py --config configs/lam/settle_claim.yaml --data DIR --runs DIR --out DIR
"""

from core.config import parse_command_line
from core.run import run_script
from lam.claim.page import settle
from lam.claim.settings import ClaimConfig


def main() -> None:
    settle(parse_command_line(ClaimConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
