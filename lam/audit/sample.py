"""The transitions that an audit measures on, and what a model says of them."""

from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from core.device import default_device
from core.spaces import ActionSpace
from core.store import Store
from lam.audit.settings import AuditConfig
from lam.dataset import DataOptions, FeatureSource, TransitionDataset, TransitionsError, pooled, transition_actions
from lam.label import codes_of
from lam.model import LatentActionModel

BATCH = 64
DEFAULT_DIMS = ("x", "y", "z")


class Sample(NamedTuple):
    """The transitions that every row is measured on: each held-out transition once a view."""

    dataset: TransitionDataset
    indices: Int[np.ndarray, " n"]
    views: Int[np.ndarray, " n"]
    episodes: Int[np.ndarray, " n"]
    actions: Float[np.ndarray, "n dims"]
    """No dimensions where the store has no actions."""
    known: Float[np.ndarray, "n 2 patches dim"] | None = None
    """Features, where they were computed once; else they are read each time."""

    def features(self, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 2 patches dim"]:
        """Features of both frames of some of the transitions."""
        if self.known is not None:
            return self.known[rows]
        return self.dataset.seen_by(self.indices[rows], self.views[rows])

    def take(self, rows: Int[np.ndarray, " rows"]) -> "Sample":
        """Some of the rows."""
        columns = (self.indices, self.views, self.episodes, self.actions)
        return Sample(self.dataset, *(column[rows] for column in columns))

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.indices)

    @property
    def store(self) -> Store:
        """Where the episodes are from."""
        return self.dataset.store


def take_sample(
    store: Store,
    cache: FeatureSource,
    config: AuditConfig,
    gap_s: float,
    pool: int,
    split: str = "held_out",
    most: int | None = None,
    needs_actions: bool = True,
) -> Sample:
    """Transitions of a split as every chosen camera saw them: all, or at most so many, drawn at random.

    Raises:
        TransitionsError: no such episodes or views, or no actions where they are needed.
        ValueError: the store has no such action dimensions.
    """
    views = config.views or tuple(store.info.views)
    dataset = TransitionDataset(store, cache, gap_s=gap_s, split=split, views=views, options=DataOptions(pool=pool))
    chosen = np.arange(len(dataset))
    if most is not None and most < len(dataset):
        chosen = np.sort(np.random.default_rng(config.seed).choice(len(dataset), most, replace=False))
    pairs = [(place, view) for place, index in enumerate(chosen) for view in dataset.available(int(index))]
    places, seen_by = (np.array(column) for column in zip(*pairs, strict=True))
    episodes, frames = dataset.locate(chosen)
    if store.info.action_space is None and not needs_actions:
        actions = np.zeros((len(chosen), 0), np.float32)
    else:
        columns = action_columns(store, config)
        actions = actions_of(store, episodes, frames, dataset.gaps[0], config.action, columns)
    return Sample(dataset, chosen[places], seen_by, episodes[places], actions[places])


def action_columns(store: Store, config: AuditConfig) -> list[int]:
    """Which dimensions of the actions are to be explained.

    Raises:
        TransitionsError: the store has no actions.
        ValueError: it has no such dimensions.
    """
    space = store.info.action_space
    if space is None:
        raise TransitionsError(f"{store.path} has no actions; measure on episodes with actions")
    if unknown := set(config.action_dims) - set(space.names):
        raise ValueError(f"action_dims {sorted(unknown)} are unknown; this store has {space.names}")
    default = DEFAULT_DIMS if set(DEFAULT_DIMS) <= set(space.names) else space.names
    return [space.names.index(name) for name in config.action_dims or default]


def actions_of(
    store: Store,
    episodes: Int[np.ndarray, " n"],
    frames: Int[np.ndarray, " n"],
    gap: int,
    kind: str,
    columns: list[int],
) -> Float[np.ndarray, "n dims"]:
    """A_t: what was done from each frame on, over the gap, in the first step, or step by step (dimensions multiply)."""
    match kind:
        case "step":
            return transition_actions(store, episodes, frames, 1)[:, columns]
        case "chunk":
            steps = [transition_actions(store, episodes, frames + step, 1)[:, columns] for step in range(gap)]
            return np.concatenate(steps, axis=1)
        case _:
            return transition_actions(store, episodes, frames, gap)[:, columns]


def action_names(space: ActionSpace, columns: list[int], gap: int, kind: str) -> list[str]:
    """A name for each dimension of A_t."""
    names = [space.names[column] for column in columns]
    return [f"{name} of step {step}" for step in range(gap) for name in names] if kind == "chunk" else names


def describe_action(space: ActionSpace, columns: list[int], gap: int, control_hz: float, kind: str) -> str:
    """What A_t is, in words, with units and seconds."""
    named = [f"{space.names[column]} ({space.units[column]})" for column in columns]
    plural = "s" if gap > 1 else ""
    seconds = f"{gap / control_hz:g} s ({gap} step{plural})"
    if kind == "chunk":
        return f"{', '.join(named)} commanded at each step over {seconds}"
    if kind == "step":
        return f"{', '.join(named)} commanded in the first step ({1 / control_hz:g} s)"
    adds_up = space.is_increment[columns]
    summed = [name for name, adds in zip(named, adds_up, strict=True) if adds]
    last = [name for name, adds in zip(named, adds_up, strict=True) if not adds]
    parts = [f"sum of {', '.join(summed)}"] * bool(summed) + [f"last {', '.join(last)}"] * bool(last)
    return f"{' and '.join(parts)} commanded over {seconds}"


def one_view_each(sample: Sample, seed: int) -> Sample:
    """Each transition as one of its cameras saw it."""
    order = np.random.default_rng(seed).permutation(sample.size)
    _, first = np.unique(sample.indices[order], return_index=True)
    return sample.take(np.sort(order[first]))


def computed_once(sample: Sample, directory: Path) -> Sample:
    """The sample with its features in a file that goes with the process; each frame is encoded once."""
    dataset = sample.dataset
    episodes, frames = dataset.locate(sample.indices)
    shape = (sample.size, 2, dataset.num_patches, dataset.source.dim)
    with TemporaryFile(dir=directory) as file:
        known = np.memmap(file, np.float16, "w+", shape=shape)
    wanted = np.stack([np.tile(episodes, 2), np.concatenate([frames, frames + dataset.gaps[0]])], axis=1)
    instant = np.repeat([0, 1], sample.size)
    of_view = [np.flatnonzero(np.tile(sample.views, 2) == view) for view in range(len(dataset.views))]
    unique = [np.unique(wanted[rows], axis=0, return_inverse=True) for rows in of_view]
    with tqdm(total=sum(len(u) for u, _ in unique), desc="audit: encode", unit="frame", mininterval=1.0) as bar:
        for view, rows, (frames_of, place) in zip(dataset.views, of_view, unique, strict=True):
            order = np.argsort(place.reshape(-1), kind="stable")
            sorted_place = place.reshape(-1)[order]
            for start in range(0, len(frames_of), BATCH):
                part = frames_of[start : start + BATCH]
                values = pooled(
                    dataset.source.features(view, part[:, 0], part[:, 1]), dataset.source.grid, dataset.options.pool
                )
                low, high = np.searchsorted(sorted_place, [start, start + len(part)])
                targets = rows[order[low:high]]
                known[targets % sample.size, instant[targets]] = values[sorted_place[low:high] - start]
                bar.update(len(part))
    return sample._replace(known=known)


def sample_codes(model: LatentActionModel, sample: Sample) -> Int[np.ndarray, "n tokens"]:
    """Code indices of every transition of the sample."""
    model = model.to(default_device())
    rows = np.arange(len(sample.indices))
    chunks = np.array_split(rows, max(1, len(rows) // BATCH))
    return np.concatenate([codes_of(model, sample.features(chunk)) for chunk in chunks])
