"""A training that is killed, interrupted, or out of disk ends up, started again, where an undisturbed one does."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_core_training import Line, config
from torch import nn

from core.checkpoint import read_tensors, save_tensors
from core.run import Stage, run_script
from core.training import fit, make_accelerator

STATE = "training_state.safetensors"


class Model(nn.Module):
    """Wide enough for its state to take as long to save as a few steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(1, 30_000), nn.GELU(), nn.Dropout(0.1), nn.Linear(30_000, 1))

    def forward(self, batch):
        return {"loss": (self.net(batch["x"]) - 3 * batch["x"] - batch["noise"]).square().mean()}


def train(out: Path, steps: int = 30, checkpoint_every: int = 1, loader_workers: int = 0) -> None:
    # With workers a step takes more batches than they make ahead: it ends only if they go on.
    loading = {"loader_workers": loader_workers, "gradient_accumulation": 40 if loader_workers else 1}
    settings = config(steps=steps, checkpoint_every=checkpoint_every, log_every=1, average_decay=0.9, **loading)
    accelerator = make_accelerator(settings, out)
    stage = Stage.open(out, "line", settings)
    model = Model()
    fit(model, Line(), settings, stage, accelerator)
    save_tensors(out / "model.safetensors", dict(model.state_dict()), {})
    stage.finish()


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.glob(".*")] if out.exists() else []


def wait_until(condition, process) -> None:
    while process.is_alive() and not condition():
        time.sleep(0.0005)


def test_a_run_killed_again_and_again_also_while_saving_ends_bit_identical_to_an_uninterrupted_one(tmp_path):
    """Real SIGKILLs of processes forked from a server that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "core.training"])
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = context.Process(target=train, args=(straight,))
    process.start()
    process.join()
    draws, while_saving, kills = random.Random(0), 0, 0
    for attempt in range(40):
        before = (killed / STATE).stat().st_mtime_ns if (killed / STATE).exists() else 0
        process = context.Process(target=train, args=(killed,))
        process.start()
        if attempt < 12:
            wait_until(
                lambda since=before: (killed / STATE).exists() and (killed / STATE).stat().st_mtime_ns > since, process
            )
            time.sleep(draws.uniform(0.0, 0.03))
            if attempt % 2:
                wait_until(lambda: any(STATE in name for name in leftovers(killed)), process)
            process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        while_saving += any(STATE in name for name in leftovers(killed))
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert (kills, while_saving) >= (6, 3)
    expected, found = (read_tensors(out / "model.safetensors") for out in (straight, killed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert leftovers(killed) == []
    assert [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, 31)
    )


@pytest.mark.parametrize("loader_workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_the_state_and_exit_with_a_sentence(tmp_path, number, loader_workers):
    """To the whole group of processes, as a terminal and a scheduler send them."""
    out = tmp_path / "run"
    command = [sys.executable, __file__, out, "100000", "100000", str(loader_workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not (out.exists() and (out / "metrics.jsonl").exists()):
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert said.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert "Traceback" not in said
    saved = read_tensors(out / STATE)["optimizer.0.step"].item()
    logged = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert saved == logged[-1]


FULL_DISK = """
mount -t tmpfs -o size=1500k tmpfs "$1" || exit 99
"$2" "$3" "$1/run" 3; echo "status $?"
ls -A "$1/run"; "$2" -c "from core.checkpoint import *; print(read_header('$1/run/{state}'))"
mount -o remount,size=50m tmpfs "$1" && "$2" "$3" "$1/run" 3; echo "status $?"
cp "$1/run/model.safetensors" "$4"
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a small file system of its own")
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on_once_there_is_room(tmp_path):
    """A state is about 1.4 MB: the disk holds one, and a new one is written before the old one goes."""
    (tmp_path / "disk").mkdir()
    script = FULL_DISK.format(state=STATE)
    words = [tmp_path / "disk", sys.executable, __file__, tmp_path / "model.safetensors"]
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    sentences = [line for line in done.stderr.splitlines() if "no space left on the disk" in line]
    assert len(sentences) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[0] == "status 1"
    assert done.stdout.splitlines()[-1] == "status 0"
    assert done.stdout.splitlines()[1:-2] == ["metrics.jsonl", "stage.json", STATE], done.stdout
    assert "'step': 1" in done.stdout.splitlines()[-2]
    train(tmp_path / "straight", steps=3)
    expected = read_tensors(tmp_path / "straight/model.safetensors")
    assert all(torch.equal(expected[name], t) for name, t in read_tensors(tmp_path / "model.safetensors").items())


if __name__ == "__main__":
    run_script(lambda: train(Path(sys.argv[1]), *map(int, sys.argv[2:])))
