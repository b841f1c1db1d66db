"""Training on two CPU processes: data parallel, ZeRO-2, ZeRO-3 and FSDP. Started by torchrun, this file trains."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from test_core_training import Line, StopAtError, config
from torch import nn

from core.checkpoint import CheckpointError, read_tensors, save_tensors
from core.run import run_script
from core.throughput import TIMINGS
from core.training import TrainingError, fit, make_accelerator, open_stage
from core.zero import set_parameter, whole

LOOSE = {"atol": 1e-6, "rtol": 1e-5}
"""Two orders of summation of the same float32 gradients."""


class Model(nn.Module):
    """Odd numbers of entries, a frozen layer, rows that are replaced, and a buffer that differs between processes."""

    def __init__(self, hidden=17):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(1, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.rows = nn.Parameter(torch.randn(3, 5))
        self.frozen = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.types = set()

    def forward(self, batch):
        self.seen += batch["x"].sum()
        answer = self.net(batch["x"])
        self.types.add(answer.dtype)
        error = (answer - 3 * batch["x"] - batch["noise"]).float().square().mean()
        return {"loss": 5 * error + self.rows.square().mean(), "rows": self.rows.square().mean()}


def train(out: Path, model=None, dataset=None, after_step=None, **changes):
    """One run; what is left in the model goes to rank{r}.safetensors."""
    AcceleratorState._reset_state()
    usual = {"steps": 12, "batch_size": 4, "gradient_accumulation": 2, "clip_norm": 3.0, "learning_rate": 0.01}
    settings = config(**usual | {"warmup_steps": 3, "log_every": 1} | changes)
    accelerator = make_accelerator(settings, out)
    stage = open_stage(accelerator, out, "line", settings, {})
    model = model or Model()

    def scale(name: str) -> float:
        return 0.0 if "frozen" in name else 0.1 if "net.0" in name else 1.0

    def validate(module):
        return {"rows": module({"x": torch.ones(4, 1), "noise": torch.zeros(4, 1)})["rows"].item()}

    options = {"validate": validate, "after_step": after_step, "learning_rate_scale": scale}
    try:
        fit(model, dataset or Line(), settings, stage, accelerator, **options)
    finally:
        stage._release()
    save_tensors(out / f"rank{accelerator.process_index}.safetensors", dict(model.state_dict()), {})
    accelerator.wait_for_everyone()
    return model


def resume(out: Path) -> None:
    def stop(step: int) -> dict:
        if step == 7:
            raise StopAtError
        return {}

    try:
        train(out, after_step=stop)
    except StopAtError:
        train(out)


def replace(out: Path) -> None:
    """Processes that disagree about the new rows; then a step with learning rate 0."""
    model = Model()
    seen = []

    def after_step(step: int) -> dict:
        if step == 0:
            new = torch.full((2, 5), 7.0 + int(os.environ["RANK"]))
            set_parameter(model.rows, torch.tensor([True, False, True]), new)
            set_parameter(model.frozen.bias, torch.tensor([True, False, False]), torch.tensor([9.0]))
        seen.append(whole(model.rows))
        return {"histogram": [1, 2]}

    train(out, model, after_step=after_step, steps=2, learning_rate=0.0, average_decay=0.0)
    assert all(torch.equal(rows, model.rows) for rows in seen)


def another_size(out: Path) -> None:
    try:
        train(out, Model(hidden=18), steps=12)
    except CheckpointError as error:
        (out / f"said{os.environ['RANK']}").write_text(str(error))


def not_finite(out: Path) -> None:
    """Only one process draws the poisoned sample."""
    try:
        train(out, dataset=Line(poisoned=7), steps=16)
    except TrainingError as error:
        (out / f"said{os.environ['RANK']}").write_text(str(error))


def main() -> None:
    out = Path(sys.argv[1])
    train(out / "straight")
    resume(out / "resumed")
    another_size(out / "straight")
    low = train(out / "bf16", mixed_precision="bf16")
    assert low.types == {torch.bfloat16}
    assert low.rows.dtype == torch.float32
    replace(out / "replaced")
    not_finite(out / "not_finite")


def launch(out: Path, **environment: str) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, out]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MVP_LAM_TRACEBACK": "1"} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if line.startswith("[rank"))
    return out


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The runs under each launcher, started when asked for; the first of DeepSpeed ever compiles for a minute."""
    folder = tmp_path_factory.mktemp("launched")

    @cache
    def start(name: str) -> Path:
        return launch(folder / name, **LAUNCHERS[name])

    return start


LAUNCHERS = {
    "data_parallel": {},
    **{
        f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
        for stage in (2, 3)
    },
    "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
}
SHARDED = [pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS if name != "data_parallel"]


@pytest.fixture(params=["data_parallel", *SHARDED])
def runs(request, launched):
    return launched(request.param)


def weights(run: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return read_tensors(run / f"rank{rank}.safetensors")


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_both_processes_end_with_the_same_whole_weights_and_their_own_buffers(runs):
    first, second = (weights(runs / "straight", rank) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first if name != "seen")
    assert not torch.equal(first["seen"], second["seen"])
    fresh = Model().state_dict()
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in fresh.items()}
    assert [name for name in fresh if torch.equal(fresh[name], first[name])] == ["frozen.weight", "frozen.bias"]


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_on_each_process(runs):
    for rank in (0, 1):
        straight, resumed = (weights(runs / name, rank) for name in ("straight", "resumed"))
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert [line["step"] for line in metrics(runs / "resumed")] == [*range(1, 13), 12]
    states = [path.name for path in (runs / "resumed").iterdir() if "training_state" in path.name]
    assert states in (["training_state.safetensors"], ["training_state-12"])


def test_replaced_rows_are_the_same_everywhere_and_survive_the_next_step(runs):
    for rank in (0, 1):
        after = weights(runs / "replaced", rank)
        assert after["rows"].tolist() == [[7.0] * 5, Model().rows[1].tolist(), [7.0] * 5]
        assert after["frozen.bias"][0] == 9.0
    lines = metrics(runs / "replaced")
    assert lines[1]["rows"] == pytest.approx((weights(runs / "replaced")["rows"] ** 2).mean().item())
    assert lines[1]["histogram"] == [1, 2]


def test_a_loss_that_is_not_finite_on_one_process_ends_both_with_a_sentence(runs):
    said = sorted((runs / "not_finite" / f"said{rank}").read_text() for rank in (0, 1))
    assert "samples ['sample" in said[0] + said[1]
    assert any("is not finite on process" in sentence for sentence in said)


def test_a_state_of_another_model_is_refused_by_its_name(runs):
    for rank in (0, 1):
        said = (runs / "straight" / f"said{rank}").read_text()
        assert "training_state" in said
        assert "net.0.bias" in said


@pytest.mark.parametrize("name", ["straight", "bf16"])
@pytest.mark.parametrize("launcher", SHARDED)
def test_shards_follow_the_curve_of_data_parallel_training(launched, launcher, name):
    parallel, sharded = launched("data_parallel"), launched(launcher)
    for one, other in zip(metrics(parallel / name), metrics(sharded / name), strict=True):
        for timing in TIMINGS:
            one.pop(timing, None), other.pop(timing, None)
        assert one == pytest.approx(other, rel=LOOSE["rtol"])
    expected = weights(parallel / name)
    for key, value in weights(sharded / name).items():
        torch.testing.assert_close(value, expected[key], **LOOSE)


if __name__ == "__main__":
    run_script(main)
