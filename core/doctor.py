"""Checks of a machine, each in a process of its own: what crashes or hangs there costs its own line only.

This module imports nothing but the standard library, so that it answers where the rest cannot even be imported.
"""

import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "FAIL"
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 60.0
BUSY_LOAD = 3.0
"""Processes that want a core, from where on slowness says nothing about what is checked."""
SET_UP = "bash scripts/setup.sh"


class Finding(NamedTuple):
    """What one check found."""

    state: str
    """`ok`; `warn`: something that not everybody needs is missing; `FAIL`: what all work rests on does not work."""
    found: str
    fix: str = ""
    """The exact command that mends it; empty where there is nothing to mend."""


def check_all(checks: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> Iterator[tuple[str, Finding]]:
    """Name and finding of each check, in order, as soon as they are known; as many run at once as there are cores.

    Args:
        checks: by name, the import string `module:function` of a function without arguments that returns a `Finding`.
        timeout_s: after which a check is ended and has failed.
    """
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        findings = executor.map(lambda target: check(target, timeout_s), checks.values())
        yield from zip(checks, findings, strict=True)


def check(target: str, timeout_s: float = TIMEOUT_S) -> Finding:
    """What the function `module:function` finds in a process of its own."""
    command = [sys.executable, "-m", "core.doctor", target]
    try:
        finished = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return no_answer(timeout_s, os.getloadavg()[0] / (os.cpu_count() or 1))
    if finished.returncode < 0:
        return Finding(FAIL, f"crashed with {_signal_name(-finished.returncode)}", SET_UP)
    answers = finished.stdout.splitlines()
    if finished.returncode > 0 or not answers:
        last_words = finished.stderr.strip().splitlines() or [f"ended with status {finished.returncode} and no answer"]
        return Finding(FAIL, last_words[-1], SET_UP)
    return Finding(*json.loads(answers[-1]))


def no_answer(timeout_s: float, load_per_core: float) -> Finding:
    """What a check that was ended says: a failure, unless the machine was too busy to tell."""
    if load_per_core > BUSY_LOAD:
        found = f"no answer in {timeout_s:g} s, but {load_per_core:.0f} processes want each core"
        return Finding(WARN, found, "python scripts/doctor.py, when the machine has less to do")
    return Finding(FAIL, f"no answer in {timeout_s:g} s", SET_UP)


def line_of(name: str, finding: Finding) -> str:
    """One line for a person."""
    fix = f"; fix: {finding.fix}" if finding.fix else ""
    return f"{finding.state:4} {name}: {' '.join(finding.found.split())}{fix}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _answer(target: str) -> None:
    finding = pkgutil.resolve_name(target)()
    # The last line counts: libraries may print what they like before.
    sys.stdout.write(f"\n{json.dumps(finding)}\n")


if __name__ == "__main__":
    _answer(sys.argv[1])
