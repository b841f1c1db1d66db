"""Measure whether the codes of latent action models are about the action: one page and one JSON.

python scripts/audit_lam.py --lam RUN --data STORE [--features CACHE] --out DIR
python scripts/audit_lam.py --lams "{name: RUN, ...}" --data STORE [--features CACHE] --out DIR
"""

from core.config import parse_command_line
from core.run import run_script
from lam.audit.audit import AuditConfig, audit


def main() -> None:
    audit(parse_command_line(AuditConfig, __doc__, required_config=False))


if __name__ == "__main__":
    run_script(main)
