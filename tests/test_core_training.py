import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from core.checkpoint import CheckpointError, TrainingState, read_tensors, save_tensors
from core.run import Stage
from core.sampling import batch_indices
from core.throughput import Work
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
    AcceleratorState._reset_state(reset_partial_state=True)
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


def states(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("training_state*"))


def test_states_are_kept_for_the_last_steps_and_every_so_many_and_a_run_goes_on_from_any(tmp_path):
    kept = config(keep_last=2, keep_every=10)
    straight, _ = run(tmp_path / "straight", kept)
    newest = "training_state.safetensors"
    assert states(tmp_path / "straight") == [
        "training_state.10.safetensors",
        "training_state.20.safetensors",
        "training_state.24.safetensors",
        newest,
    ]
    (tmp_path / "straight/training_state.10.safetensors").rename(tmp_path / "straight" / newest)
    again, _ = run(tmp_path / "straight", kept)
    assert all(torch.equal(own, other) for own, other in zip(straight.parameters(), again.parameters(), strict=True))
    assert again is not straight
    TrainingState.of(tmp_path / "straight", keeps_every=10).remove()
    assert states(tmp_path / "straight") == ["training_state.20.safetensors"]
    run(tmp_path / "plain", config())
    assert states(tmp_path / "plain") == [newest]


def test_tensors_that_are_one_are_saved_once(tmp_path):
    tied = nn.Linear(8, 8, bias=False)
    model = nn.ModuleDict({"embedding": tied, "head": nn.Linear(8, 8, bias=False)})
    model["head"].weight = tied.weight
    save_tensors(tmp_path / "model.safetensors", dict(model.state_dict()), {})
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * 4 * 64
    again = read_tensors(tmp_path / "model.safetensors")
    assert torch.equal(again["head.weight"], tied.weight)
    assert set(again) == set(model.state_dict())


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


class Steady(Model):
    """Without chance: no dropout, no noise, so that micro-steps only differ in their samples."""

    def __init__(self, dtype=torch.float32, hidden=16):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(1, hidden), nn.GELU(), nn.Linear(hidden, 1)).to(dtype)
        self.types = []

    def forward(self, batch):
        answer = self.net(batch["x"])
        self.types.append((self.training, answer.dtype))
        return {"loss": (answer.float() - 3 * batch["x"]).square().mean()}


def train(directory: Path, model: nn.Module, **changes):
    """One run of `model`; answers the lines of metrics.jsonl. The keyword arguments of `fit` are taken out."""
    options = {name: changes.pop(name) for name in ("after_step", "validate") if name in changes}
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = config(**changes)
    stage = Stage.open(directory, "line", settings)
    fit(model, Line(), settings, stage, make_accelerator(settings, directory), **options)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_accumulated_micro_steps_are_one_step_on_all_their_samples(tmp_path):
    """Some gradients are longer than the clip norm and some are not, or Adam would hide a wrong scale."""
    settings = {"steps": 12, "learning_rate": 0.05, "warmup_steps": 1, "clip_norm": 4.0, "log_every": 1}
    models = [Steady(), Steady()]
    whole = train(tmp_path / "whole", models[0], batch_size=12, **settings)
    parts = train(tmp_path / "parts", models[1], batch_size=4, gradient_accumulation=3, **settings)
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "no"), (torch.bfloat16, "bf16")])
def test_the_result_is_the_moving_average_of_the_weights_after_each_step(tmp_path, dtype, precision):
    """The average of bf16 weights is kept in float32, where small differences are not lost."""
    model, expected = Steady(dtype), {}

    def follow(step):
        decay = min(0.99, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            value = value.detach().double()
            expected[name] = decay * expected.get(name, start[name]) + (1 - decay) * value
        return {}

    start = {name: value.detach().double().clone() for name, value in model.named_parameters()}
    train(
        tmp_path, model, steps=40, average_decay=0.99, learning_rate=0.01, mixed_precision=precision, after_step=follow
    )
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, expected[name].to(dtype), rtol=1e-5, atol=1e-6)


def test_the_last_validation_is_that_of_the_averaged_weights_that_are_kept(tmp_path):
    model = Steady()
    lines = train(
        tmp_path, model, learning_rate=0.1, validate_every=7, validate=lambda module: {"sum": weight_sum(module)}
    )
    measured = {line["step"]: line["validation_sum"] for line in lines if "validation_sum" in line}
    assert sorted(measured) == [7, 14, 21, 24]
    assert measured[24] == weight_sum(model)


def weight_sum(module: nn.Module) -> float:
    return sum(value.sum().item() for value in module.parameters())


def test_bf16_computes_in_bf16_in_training_and_validation_and_keeps_float32_weights(tmp_path):
    model = Steady()
    by_part = []

    def validate(module):
        by_part.append(module.net(torch.ones(4, 1)).dtype)
        return {"loss": module({"x": torch.ones(4, 1)})["loss"].item()}

    lines = train(tmp_path / "bf16", model, mixed_precision="bf16", validate=validate)
    assert set(model.types) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert set(by_part) == {torch.bfloat16}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    exact = train(tmp_path / "no", Steady(), validate=validate)
    for one, other in zip(lines, exact, strict=True):
        measured = "loss" if "loss" in one else "validation_loss"
        assert one[measured] != other[measured]
        assert one[measured] == pytest.approx(other[measured], rel=0.02)


def test_lists_of_after_step_are_logged_and_left_out_of_what_fit_answers(tmp_path):
    settings = config(steps=4, log_every=2)
    stage = Stage.open(tmp_path, "line", settings)
    facts = [{"histogram": [1, 2], "used": 3}, {}, {}, {"used": 4}]
    accelerator = make_accelerator(settings, tmp_path)
    latest = fit(Model(), Line(), settings, stage, accelerator, after_step=lambda step: facts[step])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line.get("histogram"), line["used"]) for line in lines] == [([1, 2], 3), (None, 4)]
    assert (latest["used"], set(latest)) == (4, {"loss", "learning_rate", "used"})


def test_a_run_killed_after_its_last_step_answers_the_same_metrics_again(tmp_path):
    _, first = run(tmp_path, config())
    _, again = run(tmp_path, config())
    assert again == first


@pytest.mark.parametrize("wrong", ["size", "processes", "average"])
def test_a_training_state_that_does_not_fit_is_refused_by_its_name(tmp_path, wrong):
    train(tmp_path, Steady())
    model = Steady(hidden=17 if wrong == "size" else 16)
    state = TrainingState.of(tmp_path)
    average = [torch.zeros(3)] if wrong == "average" else []
    with pytest.raises(
        CheckpointError, match=r"training_state\.safetensors .*(other shape|2 are running|another model)"
    ):
        state.load(model, torch.optim.AdamW(model.parameters()), average, processes=2 if wrong == "processes" else 1)


def test_a_gradient_that_is_not_finite_is_refused_before_it_reaches_the_weights(tmp_path):
    class Edge(Model):
        def forward(self, batch):
            return {"loss": self.net[0].weight.mul(0).square().sum().sqrt()}

    model = Edge()
    with pytest.raises(TrainingError, match="gradient of micro-step 0 is not finite"):
        train(tmp_path, model)
    assert all(value.isfinite().all() for value in model.parameters())


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


class Sized(Model):
    """Says how much work a batch is."""

    def work(self, batch):
        return Work(tokens=3 * len(batch["x"]), flops=5e9 * len(batch["x"]))


def test_every_line_of_metrics_says_how_fast_it_was_and_what_held_it_up(tmp_path):
    train(tmp_path / "run", Sized(), steps=8, log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["samples_per_s"] == pytest.approx(8 * line["steps_per_s"], rel=1e-3)
        assert line["tokens_per_s"] == pytest.approx(3 * line["samples_per_s"], rel=1e-3)
        assert line["tflops_per_s"] == pytest.approx(5e-3 * line["samples_per_s"], rel=1e-2)
        assert 0 <= line["data_wait_share"] < 1
        assert 0.05 < line["memory_gb"] < 50
        assert "mfu" not in line
