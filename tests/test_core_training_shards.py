"""What every kind of sharded training state must do, and which settings of FSDP are refused."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from core.checkpoint import CheckpointError, TrainingState
from core.fsdp import FsdpError, make_fsdp_plugin
from core.sharded_state import SaveError, ShardedState
from core.training import TrainingConfig, TrainingError, make_accelerator


class Shards(ShardedState):
    """One process has all of it; the disk may be full."""

    sharding = "one piece"
    is_full = False

    def _write(self, directory):
        if self.is_full:
            (directory / "half").write_bytes(b"of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return {"weight": self.module.weight}

    def _read(self, directory, shards):
        self.module.weight.data.copy_(shards["weight"])


def shards(directory: Path, inputs: int = 3, keeps_every: int = 0) -> Shards:
    module = nn.Linear(inputs, 2)
    module.register_buffer("seen", torch.zeros(1))
    state = TrainingState.of(directory, keeps_every)
    return Shards(state, module, make_accelerator(TrainingConfig(mixed_precision="no"), directory))


def save(state: Shards, step: int) -> None:
    state.module.weight.data.fill_(float(step))
    state.module.seen.fill_(step)
    state.save(step, [torch.full((2,), float(step))], {"seen": state.module.seen})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_full_disk_leaves_the_last_good_state_and_nothing_else(tmp_path):
    state = shards(tmp_path)
    save(state, 2)
    state.is_full = True
    with pytest.raises(SaveError, match=r"training_state-4 .*No space left.*MiB are free"):
        save(state, 4)
    assert names(tmp_path) == ["training_state-2"]
    again, average = shards(tmp_path), [torch.zeros(2)]
    assert again.load(average) == 2
    assert (again.module.weight == 2).all()
    assert (again.module.seen.item(), average[0].tolist()) == (2.0, [2.0, 2.0])


def test_states_are_kept_for_the_last_steps_and_every_so_many(tmp_path):
    state = shards(tmp_path, keeps_every=4)
    for step in (2, 4, 6, 8, 10):
        save(state, step)
        state.state.retain(step, 2)
    assert names(tmp_path) == ["training_state-10", "training_state-4", "training_state-8"]
    state.state.remove()
    assert names(tmp_path) == ["training_state-4", "training_state-8"]


def test_a_state_of_another_kind_or_model_is_refused_by_its_name(tmp_path):
    save(shards(tmp_path), 2)
    with pytest.raises(
        CheckpointError, match=r"training_state-2 .*weight has shape \[2, 3\], that of this run \[2, 5\]"
    ):
        shards(tmp_path, inputs=5).load([])
    other = shards(tmp_path)
    other.sharding = "two pieces"
    with pytest.raises(CheckpointError, match="sharding is one piece, that of this run two pieces"):
        other.load([])
    (tmp_path / "training_state.safetensors").touch()
    with pytest.raises(CheckpointError, match="without DeepSpeed or FSDP"):
        other.load([])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"WORLD_SIZE": "1"}, "two or more"),
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "gradient_checkpointing"),
    ],
)
def test_settings_that_fsdp_could_not_follow_are_refused(monkeypatch, words, said):
    for name, value in ({"WORLD_SIZE": "2", "FSDP_VERSION": "2"} | words).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FsdpError, match=said):
        make_fsdp_plugin()


def test_models_are_built_whole_whatever_accelerate_launch_says(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}.items():
        monkeypatch.setenv(name, value)
    assert not make_fsdp_plugin().cpu_ram_efficient_loading
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "False"  # transformers looks there


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_shards_need_a_launcher(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(TrainingError, match=f"{name} is set, but no launcher"):
        make_accelerator(TrainingConfig(), tmp_path)
