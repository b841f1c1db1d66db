"""Transitions of a store as batches of cached features: several views of the same two instants."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from core.episode import frames_in
from core.frames import FeatureCache
from core.store import Store


class TransitionsError(ValueError):
    """Episodes that no transition can be made of."""


class TransitionDataset:
    """All transitions of `gap_s` seconds in a split, as seen by `views_per_sample` views drawn for each sample.

    The later frame always lies in the episode: no transition is clamped at an episode's end.
    """

    def __init__(
        self,
        store: Store,
        cache: FeatureCache,
        *,
        gap_s: float,
        split: str,
        views: Sequence[str],
        views_per_sample: int,
        pool: int = 1,
        with_actions: bool = False,
    ) -> None:
        if cache.grid.rows % pool or cache.grid.cols % pool:
            raise TransitionsError(
                f"a grid of {cache.grid.rows} x {cache.grid.cols} patches cannot be pooled by {pool}"
            )
        self.cache, self.views, self.views_per_sample, self.pool = cache, list(views), views_per_sample, pool
        self.num_patches = cache.num_patches // pool**2
        self.gap = frames_in(gap_s, store.info.control_hz)
        records = [r for r in store.select(split=split) if len(set(r.views) & set(views)) >= views_per_sample]
        if not records:
            raise TransitionsError(
                f"no {split} episode of {store.path} has {views_per_sample} of the views {self.views}; the store has "
                f"{list(store.info.views)}. Record more cameras or lower views_per_sample"
            )
        starts = [(r.index, frame) for r in records for frame in range(r.length - self.gap)]
        if not starts:
            raise TransitionsError(f"no episode is longer than the gap of {gap_s} s ({self.gap} frames); lower gap_s")
        self.episodes, self.frames = (np.array(column) for column in zip(*starts, strict=True))
        self.available = {r.index: [v for v, name in enumerate(self.views) if name in r.views] for r in records}
        self.actions = self._displacements(store, records) if with_actions else None

    def __len__(self) -> int:
        return len(self.episodes)

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> dict[str, Tensor]:
        """`features` (batch, views, 2, patches, dim) and, where asked for, `actions` (batch, dims)."""
        chosen = np.array(
            [
                generator.choice(self.available[e], size=self.views_per_sample, replace=False)
                for e in self.episodes[indices]
            ]
        )
        batch = {"features": torch.from_numpy(self.features(indices, chosen))}
        if self.actions is not None:
            batch["actions"] = torch.from_numpy(self.actions[indices])
        return batch

    def features(
        self, indices: Int[np.ndarray, " batch"], chosen: Int[np.ndarray, "batch views"]
    ) -> Float[np.ndarray, "batch views 2 patches dim"]:
        """Features of both frames as seen by the `chosen` views (positions in `self.views`)."""
        out: np.ndarray | None = None
        for view in np.unique(chosen):
            rows, slots = np.nonzero(chosen == view)
            episodes, frames = self.episodes[indices[rows]], self.frames[indices[rows]]
            for instant, at in enumerate((frames, frames + self.gap)):
                values = self._pooled(self.cache.features(self.views[view], episodes, at))
                if out is None:
                    out = np.empty((*chosen.shape, 2, *values.shape[1:]), np.float16)
                out[rows, slots, instant] = values
        assert out is not None
        return out

    def _pooled(self, values: Float[np.ndarray, "n patches dim"]) -> Float[np.ndarray, "n pooled dim"]:
        if self.pool == 1:
            return values
        return reduce(
            values.astype(np.float32),
            "n (rows a columns b) dim -> n (rows columns) dim",
            "mean",
            a=self.pool,
            b=self.pool,
            columns=self.cache.grid.cols // self.pool,
        )

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{e}:{f}" for e, f in zip(self.episodes[indices], self.frames[indices], strict=True)]

    def _displacements(self, store: Store, records: Sequence) -> Float[np.ndarray, "transitions dims"]:
        """Actions over each transition, standardised: only the labelled ceiling may see them."""
        summed = transition_actions(store, self.episodes, self.frames, self.gap)
        return ((summed - summed.mean(0)) / np.maximum(summed.std(0), 1e-3)).astype(np.float32)


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
