"""What several files of tests need: the whole smoke profile, run once on real rendered episodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
# How long an example takes is up to the machine's other work.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before the workers look for the mark
def pytest_collection_modifyitems(items):
    """With several workers, a file stays with one, and all that needs the smoke profile's run with another."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("chain" if "chain" in item.fixturenames else item.path.stem))


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
    """The whole smoke profile, on real rendered episodes."""
    out = tmp_path_factory.mktemp("chain") / "run"
    done = quickstart(out)
    assert done.returncode == 0, done.stderr[-4000:]
    return out
