"""Weights and training state on disk: safetensors with a JSON header, written atomically; never pickle."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.run import fingerprint_of_file

HEADER, ALIASES = "mvp_lam", "aliases"


class CheckpointError(ValueError):
    """A file of weights that is missing, foreign or does not fit the model."""


def save_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """Write tensors and a JSON header to one file, atomically; answers the fingerprint of the file.

    Raises:
        OSError: it could not be written; nothing is left of the attempt, and a file of before is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    aliases = _aliases(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    contiguous = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in kept.items()}
    metadata = {HEADER: json.dumps(header, default=str)} | ({ALIASES: json.dumps(aliases)} if aliases else {})
    try:
        save_file(contiguous, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except SafetensorError as error:
        # safetensors names the error of the operating system only in its text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return fingerprint_of_file(path)


def _aliases(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are another one (embeddings that are output weights too), which is kept once."""
    first: dict[Any, str] = {}
    where = {n: (t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for n, t in tensors.items() if t.numel()}
    return {name: first[place] for name, place in where.items() if first.setdefault(place, name) != name}


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
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
    return tensors | {name: tensors[other] for name, other in aliases.items()}


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
    """What a run needs to go on bit-identically: step, weights, optimiser moments, moving average, each rank's buffers.

    Random draws are functions of (seed, step, rank), so that no generator state has to be kept.

    The newest is `training_state.safetensors`; older ones that are kept have their step in the name, and a run goes on
    from one that is given the name of the newest. Under DeepSpeed and FSDP each is a directory `training_state-STEP`
    (core.sharded_state), and a run goes on from the last one.
    """

    def __init__(self, path: str | Path, keeps_every: int = 0) -> None:
        self.path, self.keeps_every = Path(path), keeps_every

    @classmethod
    def of(cls, directory: Path, keeps_every: int = 0) -> "TrainingState":
        """The training state of the run in `directory`; `keeps_every`: of which steps `remove` leaves the states."""
        return cls(directory / "training_state.safetensors", keeps_every)

    def save(
        self,
        step: int,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        average: list[Tensor],
        buffers: list[dict[str, Tensor]],
    ) -> None:
        """Replace the file by the state after `step` optimiser steps; `buffers` are those of each process.

        Weights that are frozen are left out: whoever goes on has them already.
        """
        tensors = {f"model.{name}": tensor for name, tensor in _trained(module).items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        tensors |= {f"average.{index}": tensor for index, tensor in enumerate(average)}
        for rank, own in enumerate(buffers):
            tensors |= {f"buffers.{rank}.{name}": tensor for name, tensor in own.items()}
        save_tensors(self.path, tensors, {"step": step, "processes": len(buffers)})

    def load(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        average: list[Tensor],
        rank: int = 0,
        processes: int = 1,
    ) -> int:
        """Restore into the given objects; answers the number of steps taken, 0 where nothing was saved.

        Raises:
            CheckpointError: it was saved by another number of processes, or of another model or average.
        """
        if self.sharded():
            raise CheckpointError(f"{self.sharded()[-1]} was saved under DeepSpeed or FSDP; go on with that launcher")
        if not self.path.is_file():
            return 0
        header = read_header(self.path)
        require_processes(self.path, header, processes)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "buffers": {}}
        for name, tensor in read_tensors(self.path).items():
            kind, _, rest = name.partition(".")
            groups[kind][rest] = tensor
        whole = module.state_dict()
        frozen = {name: whole[name] for name in whole if name not in _trained(module)}
        load_weights(module, frozen | groups["model"], str(self.path))
        own = {name[len(f"{rank}.") :]: t for name, t in groups["buffers"].items() if name.startswith(f"{rank}.")}
        module.load_state_dict(own, strict=False)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        copy_average(groups["average"], average, self.path)
        return int(header["step"])

    def sharded(self) -> list[Path]:
        """Directories of states that were saved in shards, newest last."""
        found = self.path.parent.glob(f"{self.path.stem}-*")
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def retain(self, step: int, last: int) -> None:
        """Keep the newest state under its step, too, and delete what is neither among the last nor to keep for good.

        A kept file is another name of the same data and takes no space of its own before the newest is replaced.
        """
        if self.path.is_file() and (last > 1 or self._is_for_good(step)):
            named = self.path.with_name(f"{self.path.stem}.{step}{self.path.suffix}")
            named.unlink(missing_ok=True)
            named.hardlink_to(self.path)
        kept = self._kept()
        for number in sorted(kept)[:-last]:
            if not self._is_for_good(number):
                _delete(kept[number])

    def remove(self) -> None:
        """Delete the states, once the run is finished and its weights are saved, but for those to keep for good."""
        self.path.unlink(missing_ok=True)
        for number, path in self._kept().items():
            if not self._is_for_good(number):
                _delete(path)

    def _is_for_good(self, step: int) -> bool:
        return bool(self.keeps_every) and step % self.keeps_every == 0

    def _kept(self) -> dict[int, Path]:
        """States with their step in the name."""
        files = self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}")
        return {int(file.name.split(".")[1]): file for file in files} | {
            int(path.name.rpartition("-")[2]): path for path in self.sharded()
        }


def _trained(module: torch.nn.Module) -> dict[str, Tensor]:
    """What training changes: `state_dict` without frozen parameters."""
    named = module.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_processes(path: Path, header: dict[str, Any], processes: int) -> None:
    """Refuse a training state that another number of processes saved: they would see other samples.

    Raises:
        CheckpointError: the numbers differ.
    """
    if header.get("processes") != processes:
        raise CheckpointError(
            f"{path} was saved by {header.get('processes')} processes, {processes} are running; start as many, or "
            "delete it to begin again"
        )


def copy_average(saved: dict[str, Tensor], average: list[Tensor], path: Path) -> None:
    """Copy a saved moving average (tensors by index) into `average`.

    Raises:
        CheckpointError: it is the average of another model.
    """
    wanted = {str(index): tensor.shape for index, tensor in enumerate(average)}
    if {name: tensor.shape for name, tensor in saved.items()} != wanted:
        raise CheckpointError(f"{path} holds the moving average of another model; delete it to begin again")
    for index, tensor in enumerate(average):
        tensor.copy_(saved[str(index)])
