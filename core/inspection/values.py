"""Numbers of all frames, actions or proprioception, gone through once: what they are like, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from core.duplicates import hash_of_actions
from core.statistics import moments
from core.store import NoActionsError, Store, StoreError

MOST_ROWS = 500_000
"""Rows that are kept, evenly spread over each episode, for quantiles and histograms."""


@dataclass(frozen=True, kw_only=True)
class Values:
    """The actions, or the proprioception, of a store."""

    names: tuple[str, ...]
    """One a dimension."""
    units: tuple[str, ...]
    """One a dimension; empty where they are not known."""
    episodes: Int[np.ndarray, " n"]
    """Positions of the episodes that have them."""
    first: Float[np.ndarray, "n dims"]
    """Their first rows."""
    low: Float[np.ndarray, "n dims"]
    """Smallest value in each of them."""
    high: Float[np.ndarray, "n dims"]
    """Largest value in each of them."""
    idle_frames: Int[np.ndarray, " n"]
    """Rows at the start of each in which everything but a gripper is exactly 0."""
    hashes: dict[int, str]
    """Equal for equal episodes, by position."""
    mean: Float[np.ndarray, " dims"]
    std: Float[np.ndarray, " dims"]
    rows: Float[np.ndarray, "rows dims"]
    """Every `step`-th row of each episode."""
    step: int
    missing: tuple[int, ...]
    """Episodes that were recorded without them."""
    unreadable: dict[int, str]
    """Why, by position."""

    @property
    def q01(self) -> Float[np.ndarray, " dims"]:
        """Values that 1 % of the kept rows lie below."""
        return np.quantile(self.rows, 0.01, axis=0)

    @property
    def q99(self) -> Float[np.ndarray, " dims"]:
        """Values that 1 % of the kept rows lie above."""
        return np.quantile(self.rows, 0.99, axis=0)

    @property
    def is_gripper(self) -> Bool[np.ndarray, " dims"]:
        """Whether a dimension opens and closes a gripper."""
        return np.array([unit == "open" for unit in self.units or [""] * len(self.names)], bool)


def action_values(store: Store) -> Values | None:
    """The actions, those of unlabelled episodes included, which here are described and not used; None: it has none."""
    space = store.info.action_space
    if space is None:
        return None

    def read(number: int) -> np.ndarray | None:
        try:
            return store.actions(number, for_audit=True)
        except NoActionsError:
            return None

    return _values(store, read, "actions", space.names, space.units)


def sense_values(store: Store) -> Values | None:
    """The proprioception; None: the store has none."""
    dims = store.info.proprioception_dims
    names = store.info.proprioception_names or tuple(f"state_{number}" for number in range(dims))
    return _values(store, store.proprioception, "proprioception", names, ()) if dims else None


@dataclass
class _Gathered:
    """What is kept of each episode while all are gone through."""

    read: Callable[[int], np.ndarray | None]
    dims: int
    is_motion: np.ndarray
    step: int
    episodes: list[int] = field(default_factory=list)
    first: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)

    def arrays(self, numbers: Sequence[int], what: str) -> Iterator[np.ndarray]:
        """The values of each episode, once what is kept of them is kept."""
        for number in tqdm(numbers, desc=f"inspect: {what}", unit="episode", mininterval=1.0, leave=False):
            try:
                values = self.read(number)
            except StoreError as error:
                self.unreadable[number] = str(error)
                continue
            if values is None:
                self.missing.append(number)
            elif values.shape[1] != self.dims:
                self.unreadable[number] = f"{what} of {values.shape[1]} numbers where info.json says {self.dims}"
            else:
                self._keep(number, values)
                yield values

    def _keep(self, number: int, values: np.ndarray) -> None:
        self.episodes.append(number)
        self.hashes[number] = hash_of_actions(values)
        self.first.append(values[0].copy())  # a view of it would keep the whole episode
        self.low.append(values.min(0))
        self.high.append(values.max(0))
        moving = values[:, self.is_motion].any(1)
        self.idle.append(int(np.argmax(moving)) if moving.any() else len(values))
        self.rows.append(values[number % self.step % len(values) :: self.step].copy())


def _values(
    store: Store,
    read: Callable[[int], np.ndarray | None],
    what: str,
    names: tuple[str, ...],
    units: tuple[str, ...],
) -> Values | None:
    dims = len(names)
    motion = np.array([unit != "open" for unit in units or [""] * dims], bool)
    gathered = _Gathered(read, dims, motion, -(-store.num_frames // MOST_ROWS))
    found = moments(_never_empty(gathered.arrays(range(len(store.episodes)), what), dims))

    def stacked(arrays: list[np.ndarray]) -> np.ndarray:
        return np.stack(arrays).astype(np.float32) if arrays else np.zeros((0, dims), np.float32)

    return Values(
        names=names,
        units=units,
        episodes=np.array(gathered.episodes, np.int64),
        first=stacked(gathered.first),
        low=stacked(gathered.low),
        high=stacked(gathered.high),
        idle_frames=np.array(gathered.idle, np.int64),
        hashes=gathered.hashes,
        mean=found.mean,
        std=found.std,
        rows=np.concatenate(gathered.rows) if gathered.rows else np.zeros((1, dims), np.float32),
        step=gathered.step,
        missing=tuple(gathered.missing),
        unreadable=gathered.unreadable,
    )


def _never_empty(arrays: Iterator[np.ndarray], dims: int) -> Iterator[np.ndarray]:
    """The arrays, or one row of zeros where there is none."""
    is_empty = True
    for array in arrays:
        is_empty = False
        yield array
    if is_empty:
        yield np.zeros((1, dims), np.float32)
