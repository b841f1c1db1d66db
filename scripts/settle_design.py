"""Compare designs of latent action models under nuisances: scripts/settle_design.py --config FILE.

python scripts/settle_design.py --config configs/lam/settle_design.yaml --data DIR --runs DIR --out DIR
"""

from core.config import parse_command_line
from core.run import run_script
from lam.claim.design import compare_designs
from lam.claim.settings import ClaimConfig


def main() -> None:
    compare_designs(parse_command_line(ClaimConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
