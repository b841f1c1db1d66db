"""Say what of this machine is in order and how to mend the rest: scripts/doctor.py [--no-render].

One line each: ok, warn (something that not everybody needs) or FAIL, what was found, and the command that mends it;
status 1 where something fails.
"""

import argparse
import sys
from pathlib import Path

# It must answer where the project is not installed, which is one of the things it finds.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.checks import CHECKS as MACHINE
from core.doctor import FAIL, WARN, check_all, line_of
from eval.checks import CHECKS as SIMULATION
from vla.checks import CHECKS as MODELS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-render", action="store_true", help="leave out whether the simulator can render")
    checks = MACHINE | MODELS | SIMULATION
    if parser.parse_args().no_render:
        del checks["rendering"]
    states = []
    for name, finding in check_all(checks):
        print(line_of(name, finding), flush=True)
        states.append(finding.state)
    print(f"{len(states)} checks, {states.count(WARN)} warnings, {states.count(FAIL)} failures", flush=True)
    return int(FAIL in states)


if __name__ == "__main__":
    sys.exit(main())
