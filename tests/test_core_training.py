import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.checkpoint import read_tensors
from core.run import Stage
from core.sampling import batch_indices
from core.training import TrainingConfig, TrainingError, fit, learning_rate_at, make_accelerator


class Line:
    """y = 3x, with noise drawn from the step's generator."""

    def __init__(self, poisoned: int | None = None):
        self.x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        self.poisoned = poisoned

    def __len__(self):
        return len(self.x)

    def batch(self, indices, generator):
        x = self.x[indices].copy()
        if self.poisoned in indices:
            x[:] = np.nan
        return {
            "x": torch.from_numpy(x),
            "noise": torch.from_numpy(generator.normal(0, 0.1, x.shape).astype(np.float32)),
        }

    def describe(self, indices):
        return [f"sample {i}" for i in indices]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(1, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, batch):
        error = (self.net(batch["x"]) - 3 * batch["x"] - batch["noise"]).square().mean()
        return {"loss": error}


class StopAtError(Exception):
    pass


def config(**changes):
    values = {
        "steps": 24,
        "batch_size": 8,
        "checkpoint_every": 5,
        "log_every": 4,
        "average_decay": 0.9,
        "mixed_precision": "no",
    }
    return TrainingConfig(**(values | changes))


def run(directory: Path, settings: TrainingConfig, stop_after: int | None = None, dataset=None):
    accelerator = make_accelerator(settings, directory)
    stage = Stage.open(directory, "line", settings)
    model = Model()

    def after_step(step: int) -> dict[str, float]:
        if step == stop_after:
            raise StopAtError
        return {}

    latest = fit(model, dataset or Line(), settings, stage, accelerator, after_step=after_step)
    return model, latest


@pytest.mark.parametrize("kill_at", [2, 5, 13, 23])
def test_a_run_killed_at_any_step_and_resumed_ends_bit_identical_to_an_uninterrupted_one(tmp_path, kill_at):
    straight, _ = run(tmp_path / "straight", config())
    with pytest.raises(StopAtError):
        run(tmp_path / "killed", config(), stop_after=kill_at)
    resumed, _ = run(tmp_path / "killed", config())
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_resuming_really_starts_from_the_saved_step(tmp_path):
    with pytest.raises(StopAtError):
        run(tmp_path, config(), stop_after=13)
    steps_before = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    run(tmp_path, config())
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps_before == [4, 8, 12]
    assert steps == [4, 8, 12, 16, 20, 24]


def test_gradient_accumulation_counts_optimiser_steps(tmp_path):
    seen = []
    settings = config(gradient_accumulation=3, steps=4)
    stage = Stage.open(tmp_path, "line", settings)
    fit(
        Model(),
        Line(),
        settings,
        stage,
        make_accelerator(settings, tmp_path),
        after_step=lambda s: seen.append(s) or {},
    )
    assert seen == [0, 1, 2, 3]


def test_training_learns_the_line(tmp_path):
    model, latest = run(tmp_path, config(steps=300, learning_rate=0.01, warmup_steps=10))
    assert latest["loss"] < 0.1
    assert abs(model.net(torch.tensor([[0.5]])).item() - 1.5) < 0.3


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    with pytest.raises(TrainingError, match=r"micro-step \d+ is not finite.*sample"):
        run(tmp_path, config(steps=16), dataset=Line(poisoned=7))


def test_every_sample_is_seen_once_before_any_is_seen_twice():
    seen = np.concatenate(
        [batch_indices(10, seed=3, step=s, batch_size=5, rank=r, world_size=2) for s in range(3) for r in (0, 1)]
    )
    for epoch in range(3):
        assert sorted(seen[epoch * 10 : epoch * 10 + 10]) == list(range(10))


def test_the_learning_rate_is_a_pure_function_of_the_step():
    settings = config(steps=100, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[99] < 0.03
    assert learning_rate_at(50, config(schedule="constant", learning_rate=1.0)) == pytest.approx(51 / 100)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_core_training import Line, Model, config
from core.run import run_script
from core.training import fit, make_accelerator, open_stage
from core.checkpoint import save_tensors

def main():
    settings = config(steps={steps}, batch_size={batch}, average_decay=0.0, checkpoint_every=5)
    out = Path({out!r})
    accelerator = make_accelerator(settings, out)
    stage = open_stage(accelerator, out, "line", settings, {{}})
    model = Model()
    model.net[2].p = 0.0
    fit(model, Line(), settings, stage, accelerator)
    if accelerator.is_main_process:
        save_tensors(out / "model.safetensors", dict(model.state_dict()), {{"world": accelerator.num_processes}})

run_script(main)
"""


def write_script(tmp_path: Path, **values) -> Path:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), **values))
    return script


def test_two_processes_agree_and_see_different_halves_of_the_batch(tmp_path):
    script = write_script(tmp_path, steps=6, batch=4, out=str(tmp_path / "two"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29611",
        str(script),
    ]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = read_tensors(tmp_path / "two" / "model.safetensors")
    script = write_script(tmp_path, steps=6, batch=4, out=str(tmp_path / "one"))
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True, timeout=200)
    one = read_tensors(tmp_path / "one" / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in two.values())
    assert any(not torch.equal(two[name], one[name]) for name in one)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 6]


def test_sigterm_saves_the_state_and_exits_with_a_sentence(tmp_path):
    script = write_script(tmp_path, steps=1_000_000, batch=8, out=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size > 200:
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert "the same command goes on where it stopped" in said
    assert (tmp_path / "run" / "training_state.safetensors").exists()
