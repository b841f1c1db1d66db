"""Batches of a training in the order of its steps, made by this process or ahead of time by several others."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork", "worker_init_fn": _one_thread}
    pinned = torch.cuda.is_available()
    return iter(DataLoader(batches, batch_size=None, sampler=micros, pin_memory=pinned, **options))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
