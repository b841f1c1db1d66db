"""Transitions of a store as batches of features: the same two instants, seen by each of several cameras."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from core.episode import frames_in
from core.live_features import LiveFeatures
from core.store import NoActionsError, Store
from core.vision import Grid
from lam.view_pairs import view_pairs

Scale = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation."""


class TransitionsError(ValueError):
    """Episodes that no transition can be made of."""


@runtime_checkable
class FeatureSource(Protocol):
    """Features of any frame of a store: from a cache, or from the encoder at once."""

    grid: Grid
    dim: int

    def features(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n patches dim"]:
        """Features, float16, of the frames `(episodes[i], frames[i])`."""


class DataOptions(NamedTuple):
    """What a sample is, for whoever trains; the defaults suit one who only looks."""

    fewest_views: int = 1
    """Episodes with fewer of the chosen cameras are left out."""
    pairs: int = 2
    """Own pairs, and cross pairs, of a transition; 0: all."""
    pool: int = 1
    """Patches averaged along each side of the grid."""
    augmentation: str = "none"
    """none, per_view, shared: whether the cameras of a transition are augmented alike."""
    labelled_fraction: float = 0.0
    """Share of the training episodes whose actions are given; of held-out ones all are."""
    hidden_actions: bool = False
    """Whether actions of episodes that are marked as action-free are given too."""
    with_proprioception: bool = False
    """Whether the robot's own state is given."""
    first_camera: int = 0
    """Number of the first of this dataset's cameras among those of the training data."""


class TransitionDataset:
    """All transitions of a split whose gap lies in `gap_s` seconds; a range of gaps is drawn from for each sample.

    The later frame always lies in the episode: no transition is clamped at an episode's end.
    """

    def __init__(
        self,
        store: Store,
        source: FeatureSource,
        *,
        gap_s: float | tuple[float, float],
        split: str,
        views: Sequence[str],
        options: DataOptions = DataOptions(),
    ) -> None:
        self.store, self.source, self.views, self.options = store, source, tuple(views), options
        self.num_patches = pooled_patches(source.grid, options.pool)
        self.gaps = gaps_in_frames(gap_s, store.info.control_hz)
        records = store.select(split=split)
        if unknown := set(self.views) - set(store.info.views):
            raise TransitionsError(f"{store.path} has no views {sorted(unknown)}; it has {list(store.info.views)}")
        if not records:
            raise TransitionsError(
                f"{store.path} has no {split} episodes; say which are train and which held_out when they are written"
            )
        records = [r for r in records if len(set(r.views) & set(self.views)) >= max(1, options.fewest_views)]
        if not records:
            raise TransitionsError(
                f"no {split} episode of {store.path} has {options.fewest_views} of the views {list(self.views)}. "
                "Record more cameras, or lower fewest_views (1 suits objective: self)"
            )
        records = [record for record in records if record.length > self.gaps[0]]
        if not records:
            raise TransitionsError(
                f"no {split} episode of {store.path} is longer than the gap of {gap_s} s ({self.gaps[0]} frames); "
                "lower gap_s"
            )
        self._numbers = np.array([record.index for record in records])
        self._lengths = np.array([record.length for record in records])
        self._ends = np.cumsum(self._lengths - self.gaps[0])
        self._available = [np.array([v for v, n in enumerate(self.views) if n in r.views]) for r in records]
        self.most_views = max(map(len, self._available))
        self._episode_actions = lru_cache(maxsize=4096)(self._actions_of)
        self._episode_senses = lru_cache(maxsize=4096)(store.proprioception)
        if options.labelled_fraction:
            chosen = np.random.default_rng(0).random(len(store.episodes)) < options.labelled_fraction
            may_be_seen = np.array([r.is_labelled or options.hidden_actions for r in store.episodes])
            self._is_labelled = may_be_seen & (chosen if split == "train" else True)
        if options.labelled_fraction or options.with_proprioception:
            trained = self
            if split != "train":
                trained = TransitionDataset(store, source, gap_s=gap_s, split="train", views=views, options=options)
            self._action_scale, self._sense_scale = trained._scales()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, indices: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Episode and first frame of each sample."""
        rows = self._row(indices)
        return self._numbers[rows], indices - (self._ends - self._lengths + self.gaps[0])[rows]

    def available(self, index: int) -> Int[np.ndarray, " views"]:
        """Which of `views` (positions) saw a sample."""
        return self._available[int(self._row(np.array([index]))[0])]

    def _row(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return np.searchsorted(self._ends, indices, side="right")

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> dict[str, Tensor]:
        """The fields of `lam.objectives.interface.Transitions`; features are float16."""
        episodes, frames = self.locate(indices)
        gaps = self._draw_gaps(indices, frames, generator)
        chosen, sample, own, cross = self._draw_views(indices, generator)
        seeds = self._draw_seeds(sample, generator)
        features = self.features(episodes[sample], frames[sample], gaps[sample], chosen, seeds)
        batch = {
            "features": features,
            "sample": sample,
            "camera": self.options.first_camera + chosen,
            "own": own,
            "cross": cross,
        }
        if self.options.labelled_fraction:
            batch["actions"] = _standardised(self._raw_actions(episodes, frames, gaps), self._action_scale)
        if self.options.with_proprioception:
            batch["proprioception"] = _standardised(self._raw_senses(episodes, frames, gaps), self._sense_scale)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _draw_gaps(
        self, indices: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"], generator: np.random.Generator
    ) -> Int[np.ndarray, " n"]:
        """Each gap of the range that ends within the episode is as likely as the others."""
        longest = np.minimum(self.gaps[1], self._lengths[self._row(indices)] - 1 - frames)
        return generator.integers(self.gaps[0], longest, endpoint=True)

    def _draw_views(
        self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator
    ) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Int[np.ndarray, " own"], Int[np.ndarray, "cross 2"]]:
        """Camera and sample of each row, rows that explain themselves, rows (target, source) across cameras."""
        chosen, sample, own, cross = [], [], [], []
        for number, row in enumerate(self._row(indices)):
            cameras = self._available[row]
            pairs = view_pairs(len(cameras), self.options.pairs)
            first = len(sample)
            chosen.extend(generator.permutation(cameras)[: pairs.slots])
            sample.extend([number] * pairs.slots)
            own.extend(first + slot for slot in pairs.own)
            cross.extend((first + target, first + source) for target, source in pairs.cross)
        return np.array(chosen), np.array(sample), np.array(own), np.array(cross, dtype=np.int64).reshape(-1, 2)

    def _draw_seeds(
        self, sample: Int[np.ndarray, " rows"], generator: np.random.Generator
    ) -> Int[np.ndarray, " rows"] | None:
        """What decides the augmentation of each row, where there is one."""
        match self.options.augmentation:
            case "none":
                return None
            case "shared":
                return generator.integers(2**62, size=sample[-1] + 1)[sample]
            case _:
                return generator.integers(2**62, size=len(sample))

    def features(
        self,
        episodes: Int[np.ndarray, " rows"],
        frames: Int[np.ndarray, " rows"],
        gaps: Int[np.ndarray, " rows"],
        views: Int[np.ndarray, " rows"],
        seeds: Int[np.ndarray, " rows"] | None = None,
    ) -> Float[np.ndarray, "rows 2 patches dim"]:
        """Features of both frames of each row, float16, as seen by its view (position in `views`)."""
        out = np.empty((len(episodes), 2, self.num_patches, self.source.dim), np.float16)
        for view in np.unique(views):
            rows = np.flatnonzero(views == view)
            for instant, at in enumerate((frames, frames + gaps)):
                where = (self.views[view], episodes[rows], at[rows])
                if seeds is None:
                    values = self.source.features(*where)
                else:
                    assert isinstance(self.source, LiveFeatures), "open_source refuses to augment cached features"
                    values = self.source.augmented(*where, seeds[rows])
                out[rows, instant] = pooled(values, self.source.grid, self.options.pool)
        return out

    def seen_by(
        self, indices: Int[np.ndarray, " n"], views: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 2 patches dim"]:
        """Features of both frames of samples over the shortest gap, each as one of `views` (a position) saw it."""
        episodes, frames = self.locate(indices)
        return self.features(episodes, frames, np.full(len(indices), self.gaps[0]), views)

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{self.store.episodes[e].episode_id}:{f}" for e, f in zip(*self.locate(indices), strict=True)]

    def _raw_actions(
        self, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"], gaps: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n dims"]:
        """Actions over each transition, NaN in episodes that count as unlabelled."""
        space = self.store.info.action_space
        if space is None:
            raise TransitionsError(f"{self.store.path} has no actions, which objective action_supervised needs")
        out = np.full((len(episodes), space.dims), np.nan, np.float32)
        for row, (episode, frame, gap) in enumerate(zip(episodes, frames, gaps, strict=True)):
            actions = self._episode_actions(int(episode)) if self._is_labelled[episode] else None
            if actions is not None:
                out[row] = space.over_steps(actions[frame : frame + gap], int(gap))[0]
        return out

    def _raw_senses(
        self, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"], gaps: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 2 senses"]:
        """Proprioception at both frames, NaN where it was not recorded."""
        dims = self.store.info.proprioception_dims
        if not dims:
            raise TransitionsError(
                f"{self.store.path} has no proprioception, which objective proprioceptive_forward needs"
            )
        out = np.full((len(episodes), 2, dims), np.nan, np.float32)
        for row, (episode, frame, gap) in enumerate(zip(episodes, frames, gaps, strict=True)):
            values = self._episode_senses(int(episode))
            if values is not None:
                out[row] = values[[frame, frame + gap]]
        return out

    def _actions_of(self, episode: int) -> Float[np.ndarray, "frames dims"] | None:
        try:
            return self.store.actions(episode, for_audit=self.options.hidden_actions)
        except NoActionsError:
            return None

    def _scales(self) -> tuple[Scale | None, Scale | None]:
        """Means and standard deviations of actions and proprioception, where they are given."""
        actions = self._scale(self._raw_actions) if self.options.labelled_fraction else None
        return actions, self._scale(self._raw_senses) if self.options.with_proprioception else None

    def _scale(self, raw: "RawNumbers") -> Scale:
        """Mean and standard deviation of numbers, over at most 20,000 transitions."""
        generator = np.random.default_rng(0)
        indices = generator.choice(len(self), min(len(self), 20_000), replace=False, shuffle=False)
        episodes, frames = self.locate(indices)
        values = raw(episodes, frames, self._draw_gaps(indices, frames, generator))
        values = values.reshape(-1, values.shape[-1])
        known = values[np.isfinite(values).all(1)]
        if not len(known):
            raise TransitionsError(
                f"no training episode of {self.store.path} has the numbers that the objective needs; label some, raise "
                "labelled_fraction, or, for a ceiling, set hidden_actions: true"
            )
        return known.mean(0), np.maximum(known.std(0), 1e-3)


@runtime_checkable
class RawNumbers(Protocol):
    """Numbers of transitions: `(episodes, frames, gaps)` to `(n, ..., dims)`."""

    def __call__(self, episodes: np.ndarray, frames: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """NaN where they are not known."""


def _standardised(values: np.ndarray, scale: Scale | None) -> np.ndarray:
    assert scale is not None
    return ((values - scale[0]) / scale[1]).astype(np.float32)


def gaps_in_frames(gap_s: float | tuple[float, float], control_hz: float) -> tuple[int, int]:
    """Shortest and longest gap in frames: the whole numbers of frames in a range of seconds.

    Raises:
        TransitionsError: none lies in the range.
        ValueError: a single gap is not a whole number of frames.
    """
    if not isinstance(gap_s, tuple):
        return (frames_in(gap_s, control_hz),) * 2
    shortest = max(1, int(np.ceil(gap_s[0] * control_hz - 0.05)))
    longest = int(np.floor(gap_s[1] * control_hz + 0.05))
    if shortest > longest:
        raise TransitionsError(
            f"no whole number of frames at {control_hz} Hz lies in gap_s {list(gap_s)}; "
            f"a frame lasts {1 / control_hz:.3f} s"
        )
    return shortest, longest


def pooled_patches(grid: Grid, pool: int) -> int:
    """Patches that are left of a grid.

    Raises:
        TransitionsError: `pool` does not divide both sides.
    """
    if grid.rows % pool or grid.cols % pool:
        raise TransitionsError(f"a grid of {grid.rows} x {grid.cols} patches cannot be pooled by {pool}")
    return grid.rows * grid.cols // pool**2


def pooled(values: Float[np.ndarray, "n patches dim"], grid: Grid, pool: int) -> Float[np.ndarray, "n pooled dim"]:
    """Means over squares of `pool` patches a side."""
    if pool == 1:
        return values
    sides = {"rows": grid.rows // pool, "columns": grid.cols // pool, "a": pool, "b": pool}
    pattern = "n (rows a columns b) dim -> n (rows columns) dim"
    return reduce(values.astype(np.float32), pattern, "mean", **sides)


def transition_actions(
    store: Store, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"], gap: int
) -> Float[np.ndarray, "n dims"]:
    """What was done from each frame until `gap` frames later: increments added up, the last target otherwise.

    For measuring only: it reads actions of episodes that are marked as action-free.
    """
    space = store.info.action_space
    if space is None:
        raise TransitionsError(f"{store.path} has no actions")
    by_episode = {int(e): store.actions(int(e), for_audit=True) for e in np.unique(episodes)}
    windows = [by_episode[int(e)][f : f + gap] for e, f in zip(episodes, frames, strict=True)]
    return np.concatenate([space.over_steps(window, gap) for window in windows]).astype(np.float32)
