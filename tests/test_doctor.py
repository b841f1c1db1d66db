"""The doctor says one line a check, survives checks that crash, and finds what is missing or broken."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core import checks as machine
from core.doctor import FAIL, OK, WARN, Finding, check, check_all, line_of, no_answer
from core.weights import CONVERTED
from eval import checks as simulation
from eval.maniskill_registry import DOWNLOAD
from eval.serving_settings import ServingConfig
from eval.simpler_assets import NEEDED
from vla import checks as models

ROOT = Path(__file__).resolve().parents[1]
ALL = machine.CHECKS | models.CHECKS | simulation.CHECKS
LINE = re.compile(r"(ok  |warn|FAIL) ([^:]+): (.+?)(?:; fix: (.+))?")
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {names!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def doctor(*options, python=sys.executable):
    """Status, and the state, finding and fix of each check by its name."""
    finished = subprocess.run(
        [python, ROOT / "scripts/doctor.py", *options], capture_output=True, text=True, check=False, cwd="/"
    )
    assert "Traceback" not in finished.stderr, finished.stderr
    *lines, last = finished.stdout.splitlines()
    assert last.startswith(f"{len(lines)} checks, ")
    found = {}
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        found[match[2]] = Finding(match[1].strip(), match[3], match[4] or "")
    return finished.returncode, found


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def installed(folder, name, version, *requirements):
    """What pip leaves of an installed package."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requirements)]) + "\n")


def test_the_doctor_says_a_line_of_each_check_and_fails_for_damaged_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("MVP_LAM_CACHE", str(tmp_path))
    (tmp_path / CONVERTED).write_text("damaged")
    status, found = doctor("--no-render")
    assert list(found) == [name for name in ALL if name != "rendering"]
    assert status == 1
    assert found["visual tower"].state == FAIL
    assert found["visual tower"].fix.startswith(f"rm {tmp_path / CONVERTED} && ")
    assert "not installed" not in found["torch"].found
    assert all(finding.fix for finding in found.values() if finding.state != OK)


def test_a_check_that_crashes_hangs_or_raises_costs_its_own_line_only():
    targets = {
        "crash": "os:abort",
        "hang": "signal:pause",
        "raise": "builtins:input",
        "silent end": "os:_exit",
        "good": "core.checks:python",
    }
    found = dict(check_all(targets, timeout_s=10.0))
    assert found["crash"] == (FAIL, "crashed with SIGABRT", "bash scripts/setup.sh")
    assert found["hang"].found.startswith("no answer in 10 s")
    assert found["raise"].state == FAIL
    assert "EOFError" in found["raise"].found
    assert found["silent end"].state == FAIL
    assert found["good"].state == OK
    assert list(found) == list(targets)


def test_no_answer_is_a_failure_unless_the_machine_was_busy():
    assert no_answer(60.0, load_per_core=1.0) == (FAIL, "no answer in 60 s", "bash scripts/setup.sh")
    busy = no_answer(60.0, load_per_core=11.0)
    assert (busy.state, busy.found) == (WARN, "no answer in 60 s, but 11 processes want each core")


def test_a_finding_of_many_lines_is_one_line():
    assert line_of("disk", Finding(WARN, "a\n b", "c")) == "warn disk: a b; fix: c"
    assert line_of("disk", Finding(OK, "a")) == "ok   disk: a"


def test_without_torch_and_simulators_every_check_still_answers_and_none_fails_for_it(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(names=["torch", "torchvision", "mani_skill", "sapien"]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, found = doctor()
    assert set(found) == set(ALL)
    assert found["torch"].state == WARN
    assert "not installed" in found["torch"].found
    assert found["torch"].fix == f"{sys.executable} -m pip install torch torchvision"
    assert found["rendering"].state == WARN
    assert found["rendering"].fix.endswith("pip install -e '.[sim]'")
    for name in ("bfloat16", "visual tower", "language model"):
        assert found[name].state == OK
        assert "not checked" in found[name].found


def test_a_python_without_any_package_is_told_what_is_missing():
    bare = Path(sys.base_prefix) / f"bin/python3.{sys.version_info.minor}"
    if sys.prefix == sys.base_prefix or not bare.exists():
        pytest.skip("the tests run in no virtual environment, so that there is no Python without packages")
    status, found = doctor(python=bare)
    assert set(found) == set(ALL)
    assert found["python"].state == OK
    assert status == any(finding.state == FAIL for finding in found.values())


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    finding = machine.python()
    assert (finding.state, finding.found) == (FAIL, "3.10.4; 3.11 or newer is needed")
    assert finding.fix == "PYTHON=/path/to/python3.12 bash scripts/setup.sh"


def test_versions_that_the_project_cannot_work_with_are_named_and_extras_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    needed = ["numpy>=2", "torch>=2.6", 'ninja>=99; extra == "speed"', "no-such-package"]
    installed(tmp_path, "mvp-lam", "0.1.0", *needed)
    assert machine.packages()[:2] == (WARN, "not installed, and needed by parts of the project: no-such-package")
    installed(tmp_path, "numpy", "1.26.4")
    finding = machine.packages()
    assert (finding.state, finding.found) == (FAIL, "numpy 1.26.4 is not >=2, no no-such-package")
    assert finding.fix == f"{sys.executable} -m pip install -e ."


def test_a_package_that_everything_needs_fails_where_it_is_absent(tmp_path, monkeypatch):
    import packaging.requirements  # noqa: F401  it is not found once the path is cut

    installed(tmp_path, "mvp-lam", "0.1.0", "pydantic>=2", "timm")
    own = "lib-dynload", "python{}.{}".format(*sys.version_info)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(folder for folder in sys.path if folder.endswith(own))])
    assert machine.packages()[:2] == (FAIL, "no pydantic, no timm")


def test_old_mplib_with_new_numpy_is_warned_of_and_not_with_the_numpy_it_was_built_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "mplib", "0.1.1")
    installed(tmp_path, "numpy", "2.4.6")
    finding = simulation.motion_planning()
    assert finding.state == WARN
    assert finding.found.startswith("mplib 0.1.1 with numpy 2.4.6 crashes")
    assert "'numpy<2'" in finding.fix
    other = tmp_path / "other"
    installed(other, "numpy", "1.26.4")
    monkeypatch.syspath_prepend(str(other))
    assert simulation.motion_planning() == (OK, "mplib 0.1.1 with numpy 1.26.4", "")


def test_a_gpu_that_does_not_answer_fails_and_one_that_torch_does_not_see_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    executable(tmp_path / "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    finding = machine.driver()
    assert finding.state == FAIL
    assert "version mismatch" in finding.found
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA H100, 570.1, 81559 MiB'")
    assert machine.driver() == (OK, "NVIDIA H100, 570.1, 81559 MiB", "")
    import torch

    if not torch.cuda.is_available():
        finding = machine.torch()
        assert finding.state == FAIL
        assert "does not see the NVIDIA GPU" in finding.found
        assert finding.fix.endswith("--force-reinstall torch torchvision")


def test_little_disk_memory_or_shared_memory_is_warned_of_and_hardly_any_fails(monkeypatch):
    for name, function in (("DISK", machine.disk), ("MEMORY", machine.memory)):
        monkeypatch.setattr(machine, f"GOOD_{name}_GB", 0.0)
        assert function().state == OK
        monkeypatch.setattr(machine, f"GOOD_{name}_GB", 1e9)
        monkeypatch.setattr(machine, f"LEAST_{name}_GB", 0.0)
        assert function().state == WARN
        monkeypatch.setattr(machine, f"LEAST_{name}_GB", 1e9)
        assert function().state == FAIL
        assert function().fix
    monkeypatch.setattr(machine, "GOOD_SHARED_MEMORY_GB", 1e9)
    assert machine.shared_memory().state == (WARN if Path("/dev/shm").is_dir() else OK)


def test_disk_is_measured_where_the_cache_will_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MVP_LAM_CACHE", str(tmp_path / "not/made/yet"))
    finding = machine.disk()
    assert str(tmp_path / "not/made/yet") in finding.found
    assert str(Path.cwd()) in finding.found


def test_build_tools_are_looked_for_on_the_path_and_beside_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    assert machine.build_tools()[:2] == (WARN, "no g++ and no ninja; only training with DeepSpeed needs them")
    executable(tmp_path / "bin/g++", "")
    executable(tmp_path / "venv/bin/ninja", "")
    assert machine.build_tools().fix == f"export PATH={tmp_path / 'venv/bin'}:$PATH"
    executable(tmp_path / "bin/ninja", "")
    assert machine.build_tools().state == OK


def test_assets_are_looked_for_where_the_environment_says_and_the_commands_that_get_them_are_given(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    files = [tmp_path / "data" / name for names in NEEDED.values() for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert simulation.simpler_assets() == (OK, f"official in {tmp_path / 'data'}", "")
    files[0].unlink()
    finding = simulation.simpler_assets()
    assert finding.state == WARN
    where = f"{tmp_path / 'data'} (as MS_ASSET_DIR says)"
    assert finding.found.startswith(f"{where} lacks 1 of SIMPLER's files, such as robots/")
    assert finding.fix == f"{DOWNLOAD} widowx250s"
    shutil.rmtree(tmp_path / "data")
    assert simulation.simpler_assets().fix == f"{DOWNLOAD} widowx250s && {DOWNLOAD} bridge_v2_real2sim"


def test_stand_ins_of_assets_are_said_to_be_no_official_ones(monkeypatch):
    shared = ROOT / "../shared/assets/simpler_bridge"
    if not shared.exists():
        pytest.skip(f"{shared} is not on this machine")
    monkeypatch.setenv("MS_ASSET_DIR", str(shared))
    finding = simulation.simpler_assets()
    assert finding.state == WARN
    assert finding.found.startswith("not official assets (stand-ins: ")


def test_the_port_is_the_policy_servers_default():
    assert ServingConfig.model_fields["port"].default == simulation.SERVER_PORT


def test_a_port_in_use_is_warned_of(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(simulation, "SERVER_PORT", port)
        finding = simulation.policy_server_port()
        assert finding.state == WARN
        assert f"--port {port + 1}" in finding.fix
    assert simulation.policy_server_port().state == OK


def test_weights_that_are_not_here_yet_are_warned_of_with_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MVP_LAM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    tower = check("core.checks:visual_tower")
    assert (tower.state, tower.fix) == (WARN, f"{sys.executable} -m core.weights")
    language = check("vla.checks:language_model")
    assert language.state == WARN
    assert "load_language_model(SMOLLM2)" in language.fix
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "looking fetches nothing"
    folder = tmp_path / models.CONVERTED
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert check("vla.checks:language_model") == (OK, str(folder), "")


def test_the_language_model_is_the_one_that_is_loaded():
    source = (ROOT / "vla/language_models.py").read_text()
    assert f'SMOLLM2 = "{models.SMOLLM2}"\n' in source
    assert f'CONVERTED = "{models.CONVERTED}"\n' in source


@pytest.mark.sim
def test_the_renderer_of_this_machine_is_named():
    finding = check("eval.checks:rendering")
    assert finding.state == OK, finding
    assert re.match(r"Vulkan on the (cpu|cuda) device of \w+", finding.found)


@pytest.mark.sim
def test_a_renderer_that_finds_no_driver_fails_with_mesas_version_and_the_command_that_installs_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere.json")
    monkeypatch.setenv("VK_DRIVER_FILES", "/nowhere.json")
    executable(tmp_path / "dpkg-query", "printf 22.3.6-1+deb12u1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    finding = check("eval.checks:rendering")
    assert finding.state == FAIL
    assert finding.found.endswith("; Mesa 22.3.6-1+deb12u1, 25 or newer is needed")
    assert finding.fix == "bash scripts/setup.sh"
    executable(tmp_path / "dpkg-query", "printf 1:25.0.7-2~bpo12+1")
    assert check("eval.checks:rendering").found.endswith("; Mesa 1:25.0.7-2~bpo12+1")


@pytest.mark.parametrize(
    ("options", "expected"), [([], "scripts/doctor.py"), (["--no-render"], "scripts/doctor.py --no-render")]
)
@pytest.mark.parametrize("doctor_status", [0, 1])
def test_set_up_ends_with_the_doctor_and_with_its_status(tmp_path, options, expected, doctor_status):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("one")
    python = (
        f'echo "$*" >>calls; case "$*" in *platform*) echo 3.12 ;; scripts/doctor.py*) exit {doctor_status} ;; esac'
    )
    executable(tmp_path / ".venv/bin/python", python)
    finished = subprocess.run(
        ["bash", "scripts/setup.sh", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == doctor_status, finished.stderr
    assert (tmp_path / "calls").read_text().splitlines()[-1] == expected
    assert ("setup: done" in finished.stderr) == (doctor_status == 0)
