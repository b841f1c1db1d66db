import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.sampling import Shares, batch_indices, permuted


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_sample_stands_somewhere_in_the_permutation_and_once(size, seed, epoch):
    assert np.array_equal(np.sort(permuted(np.arange(size), size, seed, epoch)), np.arange(size))


def test_each_sample_is_as_likely_in_each_place_and_neighbours_tell_nothing():
    counts = np.zeros((12, 12))
    for seed in range(6000):
        counts[np.arange(12), permuted(np.arange(12), 12, seed)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 190  # 121 degrees of freedom: 190 is exceeded once in 20,000 times
    order = permuted(np.arange(100_000), 100_000, 1)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def test_a_permutation_of_a_data_set_of_any_size_costs_no_memory():
    found = batch_indices(10**12, seed=0, step=10**6, batch_size=64)
    assert len(set(found.tolist())) == 64
    assert found.max() > 10**11


@pytest.mark.parametrize(("size", "world", "batch"), [(10, 2, 3), (97, 3, 8), (64, 4, 4)])
def test_processes_share_an_epoch_without_overlap(size, world, batch):
    steps = range(-(-5 * size // (world * batch)))
    where = {"seed": 3, "batch_size": batch, "world_size": world}
    seen = np.concatenate([batch_indices(size, step=s, rank=r, **where) for s in steps for r in range(world)])
    for epoch in range(5):
        assert sorted(seen[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))
    assert not np.array_equal(seen[:size], seen[size : 2 * size])


def test_the_samples_of_a_step_do_not_depend_on_how_many_processes_share_them():
    alone = batch_indices(1000, seed=5, step=7, batch_size=12)
    shared = [batch_indices(1000, seed=5, step=7, batch_size=3, rank=rank, world_size=4) for rank in range(4)]
    assert np.array_equal(alone, np.concatenate(shared))


def test_a_mixture_has_the_shares_that_were_asked_for_and_every_sample_of_the_scarcest():
    shares = Shares([100, 30], weights=[1.0, 3.0])
    assert len(shares) == 400
    counts = {0: np.zeros(100, int), 1: np.zeros(30, int)}
    for number, inner in shares.split(permuted(np.arange(400), 400, seed=0)):
        np.add.at(counts[number], inner, 1)
    assert counts[0].tolist() == [1] * 100
    assert set(counts[1].tolist()) == {10}


def test_two_thousand_steps_of_a_mixture_are_drawn_in_proportion():
    shares = Shares([7000, 500], weights=[0.9, 0.1])
    found = [
        (number, len(inner))
        for step in range(2000)
        for number, inner in shares.split(batch_indices(len(shares), seed=1, step=step, batch_size=8))
    ]
    drawn = sum(count for number, count in found if number == 1)
    assert abs(drawn / 16_000 - 0.1) < 0.01
