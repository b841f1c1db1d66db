"""Which samples a training step sees: a pure function of (seed, step, rank), so that resuming needs no state."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int


def batch_indices(
    size: int, *, seed: int, step: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Int[np.ndarray, " batch"]:
    """Indices into a data set of `size` samples for one process at one step.

    All processes together walk through one seeded permutation after another; no sample is seen twice before every
    other one was seen once.
    """
    first = (step * world_size + rank) * batch_size
    positions = np.arange(first, first + batch_size)
    epochs, offsets = np.divmod(positions, size)
    return np.array([_permutation(size, seed, int(e))[o] for e, o in zip(epochs, offsets, strict=True)])


def step_generator(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The source of whatever is random in one step of one process."""
    return np.random.default_rng([seed, step, rank])


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, size]).permutation(size)
