import numpy as np
import pytest
import torch

from core.loading import StepBatches, in_order


class Numbers:
    """Samples that say which they are and what was drawn for them."""

    def __len__(self):
        return 50

    def batch(self, indices, generator):
        return {"index": torch.from_numpy(indices), "drawn": torch.from_numpy(generator.normal(size=len(indices)))}

    def describe(self, indices):
        return [str(index) for index in indices]


def loaded(workers, micros=range(12), rank=0, world_size=1):
    batches = StepBatches(Numbers(), seed=4, batch_size=6, rank=rank, world_size=world_size)
    return list(in_order(batches, micros, workers))


def same(left, right):
    return (
        left.seed == right.seed
        and np.array_equal(left.indices, right.indices)
        and all(torch.equal(left.batch[name], right.batch[name]) for name in left.batch)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_batch_and_no_order(workers):
    alone, shared = loaded(0), loaded(workers)
    assert len(alone) == len(shared) == 12
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_at_the_very_next_batch(workers):
    whole = loaded(0)
    assert all(same(a, b) for a, b in zip(whole[7:], loaded(workers, range(7, 12)), strict=True))
    assert loaded(workers, range(12, 12)) == []


def test_processes_see_different_samples_and_draws():
    first, second = (loaded(0, rank=rank, world_size=2) for rank in (0, 1))
    assert not set(first[0].indices) & set(second[0].indices)
    assert not torch.equal(first[0].batch["drawn"], second[0].batch["drawn"])
