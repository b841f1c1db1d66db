"""Run directories: recognised when finished, set aside when changed, never lost; mistakes answered in a sentence."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.config import Config
from core.run import (
    Stage,
    StageError,
    fingerprint_of,
    fingerprint_of_file,
    is_done,
    read_manifest,
    run_script,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


class Settings(Config):
    out: str = "here"
    """Where it goes."""
    steps: int = 10
    """Steps."""


def run_stage(path, config=None, inputs=None, summary=None):
    """Open, work and finish; answers whether there was anything to do."""
    stage = Stage.open(path, "try", config or Settings(), inputs or {"store": "abc"})
    worked = not stage.is_done
    if worked:
        (stage.path / "result.txt").write_text(f"{stage.record['config']['steps']}")
        stage.finish(summary)
    return worked


def test_a_finished_stage_is_recognised_and_skipped(tmp_path, capsys):
    assert run_stage(tmp_path / "run", summary={"loss": 0.25, "arms": {"a": 1}})
    assert "try: done in 0 s" in capsys.readouterr().err
    before = (tmp_path / "run/manifest.json").read_bytes()
    assert not run_stage(tmp_path / "run")
    assert "already done" in capsys.readouterr().err
    assert (tmp_path / "run/manifest.json").read_bytes() == before


def test_the_manifest_tells_what_was_run_from_what_with_what(tmp_path):
    run_stage(tmp_path / "run", summary={"loss": 0.25})
    manifest = read_manifest(tmp_path / "run")
    assert manifest["config"] == {"out": "here", "steps": 10}
    assert manifest["inputs"] == {"store": "abc"}
    assert manifest["summary"] == {"loss": 0.25}
    assert manifest["fingerprint"] == manifest["key"]
    assert {"python", "mvp-lam", "numpy"} <= set(manifest["versions"])


def test_the_manifest_is_written_last(tmp_path):
    stage = Stage.open(tmp_path / "run", "try", Settings())
    assert (tmp_path / "run/stage.json").exists()
    assert not is_done(tmp_path / "run")
    stage.finish()
    assert is_done(tmp_path / "run")


def test_an_interrupted_stage_is_resumed_with_its_files_and_its_time(tmp_path, capsys):
    stage = Stage.open(tmp_path / "run", "try", Settings())
    (stage.path / "half.txt").write_text("half")
    stage._started -= 100
    stage.keep_time()
    del stage
    again = Stage.open(tmp_path / "run", "try", Settings())
    assert "resuming" in capsys.readouterr().err
    assert not again.is_done
    assert (again.path / "half.txt").read_text() == "half"
    assert 100 <= again.finish()["seconds"] < 110


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": Settings(steps=20)}, "config.steps: 10 -> 20"),
        ({"inputs": {"store": "other"}}, "inputs.store: abc -> other"),
    ],
)
def test_a_changed_stage_runs_again_says_what_changed_and_keeps_the_old_run(tmp_path, capsys, change, said):
    run_stage(tmp_path / "run")
    old_key = read_manifest(tmp_path / "run")["key"]
    assert run_stage(tmp_path / "run", **change)
    assert said in capsys.readouterr().err
    assert (tmp_path / f"run.old-{old_key}/result.txt").read_text() == "10"
    assert read_manifest(tmp_path / f"run.old-{old_key}")["key"] == old_key


def test_nothing_is_lost_however_often_settings_go_back_and_forth(tmp_path):
    for steps in (10, 20, 10, 20, 10):
        assert run_stage(tmp_path / "run", Settings(steps=steps))
    results = sorted(file.read_text() for file in tmp_path.rglob("result.txt"))
    assert results == ["10", "10", "10", "20", "20"]


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StageError, match="is not a run of this project; choose another directory"):
        run_stage(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_output_that_is_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StageError, match="is a file, not a directory"):
        run_stage(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "a file"


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "run").mkdir()
    assert run_stage(tmp_path / "run")


def test_two_processes_cannot_work_in_one_directory(tmp_path):
    program = (
        "import sys; from core.run import Stage; from core.config import Config\n"
        "stage = Stage.open(sys.argv[1], 'try', Config()); print('open', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StageError, match="another process is working in"):
            Stage.open(tmp_path / "run", "try", Config())
        other.kill()
        other.wait()
    assert not Stage.open(tmp_path / "run", "try", Config()).is_done, "a killed process must not keep the lock"


def test_a_forked_child_that_is_left_behind_does_not_keep_the_stage(tmp_path):
    program = (
        "import os, sys, time; from core.run import Stage; from core.config import Config\n"
        "stage = Stage.open(sys.argv[1], 'try', Config()); child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(60)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(StageError, match="another process is working in"):
                Stage.open(tmp_path / "run", "try", Config())
            process.kill()
            process.wait()
            assert not Stage.open(tmp_path / "run", "try", Config()).is_done
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_stage_can_be_opened_again_by_the_process_that_finished_it(tmp_path):
    first = Stage.open(tmp_path / "run", "try", Settings())
    first.finish()
    assert Stage.open(tmp_path / "run", "try", Settings()).is_done


def test_other_processes_of_a_run_write_nothing(tmp_path):
    stage = Stage.open(tmp_path / "run", "try", Settings(), is_main=False)
    assert not stage.is_done
    assert not list(tmp_path.iterdir())
    assert stage.key == Stage.open(tmp_path / "run", "try", Settings()).key


def test_a_missing_manifest_is_explained(tmp_path):
    with pytest.raises(StageError, match="that stage was not run"):
        read_manifest(tmp_path / "nowhere")
    Stage.open(tmp_path / "run", "try", Settings())
    with pytest.raises(StageError, match="was started but did not finish; run its command again"):
        read_manifest(tmp_path / "run")


def test_a_record_cut_short_is_explained(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text('{"key": ')
    with pytest.raises(StageError, match=r"manifest\.json is not valid JSON"):
        read_manifest(tmp_path / "run")


def test_readers_never_see_half_a_file(tmp_path):
    path, values, seen = tmp_path / "a.json", [{"n": [n] * 20000} for n in range(2)], set()
    write_json(path, values[0])
    stop = threading.Event()

    def read():
        while not stop.is_set():
            seen.add(json.loads(path.read_text())["n"][-1])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(30):
        write_json(path, values[n % 2])
    stop.set()
    reader.join()
    assert seen == {0, 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_fingerprints_depend_on_content_alone(tmp_path):
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1}) != fingerprint_of({"a": 1, "b": 3})
    for name, text in (("x", "same"), ("y", "same"), ("z", "other")):
        (tmp_path / name).write_text(text)
    x, y, z = (fingerprint_of_file(tmp_path / name) for name in "xyz")
    assert x == y != z
    assert len(x) == 12


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("gap_s is 0, must be positive"), 1, ": gap_s is 0, must be positive\n"),
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), 1, "No such file or directory: 'a.mp4'\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "model.safetensors"),
            1,
            "free some and run the same command",
        ),
        (KeyboardInterrupt(), 130, "the same command goes on where it stopped\n"),
    ],
)
def test_mistakes_of_the_caller_end_in_one_sentence(error, status, sentence, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == status
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_mistakes_of_the_programmer_keep_their_traceback():
    def main():
        raise AssertionError("cannot happen")

    with pytest.raises(AssertionError):
        run_script(main)


def test_the_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("MVP_LAM_TRACEBACK", "1")

    def main():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        run_script(main)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")
def test_a_full_disk_is_said_as_such(capsys):
    """/dev/full answers every write as a full disk does."""

    def main():
        with open("/dev/full", "w") as file:
            file.write("x" * 100000)

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == 1
    assert "no space left on the disk of the output directory" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_file_and_names_the_directory(tmp_path, capsys):
    """A limit on the size of files stands for the disk; it needs no rights."""
    write_json(tmp_path / "stage.json", {"old": True})
    program = (
        "import resource, signal, sys; from core.run import run_script, write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "run_script(lambda: write_json(sys.argv[1], {'new': 'x' * 5000}))"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "stage.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "stage.json").read_text()) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["stage.json"]
