"""Measure how much the codes of latent action models tell about the action, next to floor and controls.

python scripts/audit_lam.py --config FILE [--key VALUE ...]
"""

from core.config import parse_command_line
from core.run import run_script
from lam.audit.audit import AuditConfig, audit


def main() -> None:
    audit(parse_command_line(AuditConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
