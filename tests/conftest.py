"""What several files of tests need: the whole smoke profile, run once on real rendered episodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
# How long an example takes is up to the machine's other work.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _any_precision():
    """accelerate holds a process to the first precision that it was asked for."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


def quickstart(out: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "scripts/quickstart.sh", "--profile", "smoke", "--out", str(out), *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """The whole smoke profile, on real rendered episodes: one run for all processes that share the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "chain"
    with FileLock(f"{folder}.lock"):
        if not (folder / "run" / "report.html").exists():
            done = quickstart(folder / "run")
            assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"
