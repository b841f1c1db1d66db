"""Weights and training state on disk: safetensors with a JSON header, written atomically; never pickle."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.run import fingerprint_of_file

HEADER = "mvp_lam"


class CheckpointError(ValueError):
    """A file of weights that is missing, foreign or does not fit the model."""


def save_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """Write tensors and a JSON header to one file, atomically; answers the fingerprint of the file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    contiguous = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={HEADER: json.dumps(header, default=str)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    return fingerprint_of_file(path)


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a file that `save_tensors` wrote.

    Raises:
        CheckpointError: there is no such file, or it was not written by this project.
    """
    metadata = read_metadata(path)
    if HEADER not in metadata:
        raise CheckpointError(f"{path} was not written by this project: its metadata has no key {HEADER!r}")
    return json.loads(metadata[HEADER])


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of any safetensors file.

    Raises:
        CheckpointError: there is no such file, or it is of another format or cut off.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no weights at {path}; give the directory or file of a finished training run")
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is cut off ({error})") from None


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU."""
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into a module that must have exactly these names and shapes.

    Raises:
        CheckpointError: names or shapes differ; the message lists the first of them.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(tensors))
    foreign = sorted(set(tensors) - set(own))
    wrong = sorted(name for name in set(own) & set(tensors) if own[name].shape != tensors[name].shape)
    if missing or foreign or wrong:
        raise CheckpointError(
            f"{source} does not fit the model: missing {missing[:4]}, unexpected {foreign[:4]}, other shape {wrong[:4]}"
        )
    module.load_state_dict(tensors)


class TrainingState:
    """What a run needs to go on bit-identically: step, weights, optimiser moments, moving average.

    Random draws are functions of (seed, step, rank), so that no generator state has to be kept.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, directory: Path) -> "TrainingState":
        """The training state of the run in `directory`."""
        return cls(directory / "training_state.safetensors")

    def save(
        self, step: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None
    ) -> None:
        """Replace the file by the state after `step` optimiser steps."""
        tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
        save_tensors(self.path, tensors, {"step": step})

    def load(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None) -> int:
        """Restore into the given objects; answers the number of steps taken, 0 where nothing was saved."""
        if not self.path.is_file():
            return 0
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        for name, tensor in read_tensors(self.path).items():
            kind, _, rest = name.partition(".")
            groups[kind][rest] = tensor
        load_weights(module, groups["model"], str(self.path))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        for name, tensor in groups["average"].items():
            assert average is not None
            average[name].copy_(tensor)
        return int(read_header(self.path)["step"])

    def remove(self) -> None:
        """Delete the file, once the run is finished and its weights are saved."""
        self.path.unlink(missing_ok=True)
