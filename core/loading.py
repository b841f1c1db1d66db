"""Batches of a training in the order of its steps, made by this process or ahead of time by several others."""

import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.read_ahead import frames_given, frames_kept
from core.sampling import batch_indices, step_generator

Batch = dict[str, Tensor]


@runtime_checkable
class Dataset(Protocol):
    """Samples by index, made into batches by the data set itself."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, indices: np.ndarray, generator: np.random.Generator) -> Batch:
        """The samples at `indices`; what is random about them is drawn from `generator`."""

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the samples, for messages."""


class Loaded(NamedTuple):
    """What one micro-step of one process works on."""

    batch: Batch
    indices: np.ndarray
    """Samples in it."""
    seed: int
    """Of whatever the model itself draws."""


class StepBatches:
    """The batch of any micro-step, as a pure function of its number: workers and resuming change nothing."""

    def __init__(self, dataset: Dataset, *, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        self.dataset, self.seed, self.rank = dataset, seed, rank
        self._where = {"seed": seed, "batch_size": batch_size, "rank": rank, "world_size": world_size}

    def __getitem__(self, micro: int) -> Loaded:
        indices = batch_indices(len(self.dataset), step=micro, **self._where)
        generator = step_generator(self.seed, micro, self.rank)
        return Loaded(self.dataset.batch(indices, generator), indices, int(generator.integers(2**62)))


def in_order(batches: StepBatches, micros: range, workers: int) -> Iterator[Loaded]:
    """The batches of `micros` in their order; with workers, made ahead of time in as many forked processes."""
    if not workers or not micros:
        return (batches[micro] for micro in micros)
    options: dict[str, Any] = {
        "num_workers": workers,
        "multiprocessing_context": "fork",
        "worker_init_fn": _start_worker,
        "collate_fn": _as_it_is,
        "pin_memory": torch.cuda.is_available(),
    }
    return _completed(batches, micros, iter(DataLoader(_Ahead(batches), batch_size=None, sampler=micros, **options)))


class _Ahead:
    """What a worker does for a micro-step: its batch, or the frames that the main process has to encode for it."""

    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def __getitem__(self, micro: int) -> Loaded | list[Tensor] | Exception:
        """An error is handed over as a value: raised here, it would arrive wrapped in a page about the worker."""
        try:
            with frames_kept() as kept:
                loaded = self.batches[micro]
        except (ValueError, OSError) as error:
            error.add_note(traceback.format_exc())
            return error
        return [torch.from_numpy(frames) for frames in kept] or loaded


def _completed(batches: StepBatches, micros: range, made: Iterable[Any]) -> Iterator[Loaded]:
    for micro, ahead in zip(micros, made, strict=True):
        if isinstance(ahead, Exception):
            raise ahead
        if not isinstance(ahead, Loaded):
            with frames_given(frames.numpy() for frames in ahead):
                ahead = batches[micro]
        yield ahead


def _as_it_is(ahead: Any) -> Any:
    return ahead


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A terminal sends Ctrl-C to workers too, and a scheduler SIGTERM, but the main process needs them to end its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by_parent, daemon=True).start()


def _end_when_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
