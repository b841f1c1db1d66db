"""Damaged sources: 550 seeded changes; each ends in what was recorded or in one of our errors."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import CHECKED, NEEDS_SHARED, SHARED, SOURCES

PROGRAM = Path(__file__).with_name("fuzzing.py")
CHANGES = 110
"""Of each of the five sources."""
PAYLOAD = {"flip", "zero", "swap", "insert", "latin"}
"""Changes of single bytes, which formats without checksums cannot notice."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SOURCES)
def test_damage_ends_in_what_was_recorded_or_in_an_error_of_ours(name, tmp_path):
    if name in NEEDS_SHARED and not SHARED.is_dir():
        pytest.skip(f"the real recordings are not in {SHARED}")
    command = [sys.executable, str(PROGRAM), name, "0", str(CHANGES), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=550)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"after {lines[-1:]}: {run.stderr[-2000:]}"
    assert len(lines) == CHANGES
    counts = collections.Counter(line["outcome"] for line in lines)
    allowed = {"same", "refused"} if name in CHECKED else {"same", "refused", "different"}
    assert set(counts) <= allowed, [line for line in lines if line["outcome"] not in allowed]
    assert counts["refused"] > CHANGES / 3
    different = [line["change"].split() for line in lines if line["outcome"] == "different"]
    assert not [(change, *rest) for change, *rest in different if change not in PAYLOAD and not is_text(rest)]


def is_text(file):
    """Whether any text is as good as another there."""
    return file[0].endswith("instruction.txt")
