"""The training state of a run whose optimiser is in shards: a directory a save, to which each process adds its own."""

import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from core.checkpoint import (
    CheckpointError,
    TrainingState,
    copy_average,
    read_header,
    read_tensors,
    require_processes,
    save_tensors,
)


class SaveError(RuntimeError):
    """A state that could not be saved."""


class ShardedState:
    """`training_state-STEP`; each process keeps its share of the moving average, its buffers and its shards there.

    All of it is for all processes together.
    """

    sharding: str
    """How training is sharded; a state goes on under the same only."""

    def __init__(self, state: TrainingState, module: nn.Module, accelerator: Accelerator) -> None:
        self.state, self.module, self.accelerator = state, module, accelerator
        self.file = f"process{accelerator.process_index}.safetensors"

    def _write(self, directory: Path) -> dict[str, Tensor]:
        """Save what is not in the answer: tensors of this process by name, each after `shards.`."""
        raise NotImplementedError

    def _read(self, directory: Path, shards: dict[str, Tensor]) -> None:
        """Restore what `_write` saved and answered."""
        raise NotImplementedError

    def save(self, step: int, average: list[Tensor], buffers: dict[str, Tensor]) -> None:
        """Write the state after `step` optimiser steps.

        Raises:
            SaveError: it could not be written; the state of before is as it was.
        """
        final = self.state.path.with_name(f"{self.state.path.stem}-{step}")
        temporary = final.with_name(f".{self.state.path.stem}.{step}")
        try:
            temporary.mkdir(exist_ok=True)
            tensors = {f"shards.{name}": tensor for name, tensor in self._write(temporary).items()}
            tensors |= {f"average.{index}": tensor for index, tensor in enumerate(average)}
            tensors |= {f"buffers.{name}": tensor for name, tensor in buffers.items()}
            save_tensors(temporary / self.file, tensors, {"step": step, **self._form()})
            for path in temporary.rglob("*.pt") if self.accelerator.is_main_process else ():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            free = shutil.disk_usage(final.parent).free
            raise SaveError(
                f"the training state could not be saved in {final} ({error}); {free / 2**20:.0f} MiB are free on that "
                "disk; free some and run the same command again"
            ) from None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            temporary.rename(final)
        self.accelerator.wait_for_everyone()

    def load(self, average: list[Tensor]) -> int:
        """Restore all of it and `average`; answers the number of steps taken, 0 where nothing was saved.

        Raises:
            CheckpointError: it was saved in another way or number of shards, or of another model.
        """
        if self.state.path.is_file():
            raise CheckpointError(f"{self.state.path} was saved without DeepSpeed or FSDP; go on with that launcher")
        saved = self.state.sharded()
        if not saved:
            return 0
        directory = saved[-1]
        header = read_header(
            directory / self.file if (directory / self.file).is_file() else next(directory.glob("*.safetensors"))
        )
        require_processes(directory, header, self.accelerator.num_processes)
        for key, value in self._form().items():
            if header.get(key) != value:
                raise CheckpointError(
                    f"{directory} does not fit this run: its {_first_difference(key, header.get(key), value)}"
                )
        kinds: dict[str, dict[str, Tensor]] = {"shards": {}, "average": {}, "buffers": {}}
        for name, tensor in read_tensors(directory / self.file).items():
            kind, _, rest = name.partition(".")
            kinds[kind][rest] = tensor
        self._read(directory, kinds["shards"])
        copy_average(kinds["average"], average, directory / self.file)
        own = dict(self.module.named_buffers())
        for name, tensor in kinds["buffers"].items():
            own[name].copy_(tensor)
        return int(header["step"])

    def _form(self) -> dict[str, Any]:
        shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self.module.named_parameters()}
        return {"processes": self.accelerator.num_processes, "sharding": self.sharding, "shapes": shapes}


def _first_difference(key: str, saved: Any, wanted: Any) -> str:
    if not isinstance(saved, dict):
        return f"{key} is {saved}, that of this run {wanted}"
    name = next(name for name in sorted({*saved, *wanted}) if saved.get(name) != wanted.get(name))
    return f"parameter {name} has shape {saved.get(name)}, that of this run {wanted.get(name)}"
