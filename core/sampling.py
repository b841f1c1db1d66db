"""Which samples a training step sees: a pure function of (seed, step, rank), so that resuming needs no state.

Shuffling is a permutation that is computed, not stored: a data set of any size costs no memory.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

_ROUNDS = 6


def batch_indices(
    size: int, *, seed: int, step: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Int[np.ndarray, " batch"]:
    """Indices into a data set of `size` samples for one process at one step.

    All processes together walk through one seeded permutation after another; no sample is seen twice before every
    other one was seen once.
    """
    first = (step * world_size + rank) * batch_size
    epochs, offsets = np.divmod(np.arange(first, first + batch_size), size)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        indices[of_epoch] = permuted(offsets[of_epoch], size, seed, int(epoch))
    return indices


def permuted(positions: Int[np.ndarray, " n"], size: int, seed: int, epoch: int = 0) -> Int[np.ndarray, " n"]:
    """What stands at `positions` of a seeded permutation of `size` numbers.

    A Feistel network permutes the next larger power of four; what falls outside is permuted again until it falls
    inside, so that the result is a permutation of `size` (Black and Rogaway 2002, cycle walking).
    """
    keys = np.random.default_rng([seed, epoch, size]).integers(2**63, size=_ROUNDS).astype(np.uint64)
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    numbers = positions.astype(np.uint64)
    left = np.arange(len(numbers))
    while len(left):
        numbers[left] = _network(numbers[left], half, keys)
        left = left[numbers[left] >= size]
    return numbers.astype(np.int64)


def _network(numbers: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    upper, lower = numbers >> half, numbers & mask
    for key in keys:
        upper, lower = lower, upper ^ (_mixed(lower + key) & mask)
    return (upper << half) | lower


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def step_generator(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The source of whatever is random in one step of one process."""
    return np.random.default_rng([seed, step, rank])


class Shares:
    """Several data sets as one, each with its share of the samples.

    It is as long as it takes for each of them to be seen whole at least once, and in its share; so it stays a list that
    training can shuffle and walk through, with nothing to remember.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | Float[np.ndarray, " sets"]) -> None:
        self.sizes = tuple(sizes)
        shares = np.array(weights) / np.sum(weights)
        whole = max(size / share for size, share in zip(self.sizes, shares, strict=True))
        self._ends = np.cumsum([round(share * whole) for share in shares])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def split(self, indices: Int[np.ndarray, " batch"]) -> Iterator[tuple[int, Int[np.ndarray, " part"]]]:
        """Numbers of data sets, and the positions in each that the indices stand for."""
        owners = np.searchsorted(self._ends, indices, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return ((int(o), (indices[owners == o] - starts[o]) % self.sizes[o]) for o in np.unique(owners))
