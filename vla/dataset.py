"""Samples for pretraining (images, instruction, latent codes) and for fine-tuning (images, instruction, actions)."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from core.labels import LabelsError, LatentLabels
from core.loading import Batch
from core.statistics import Statistics
from core.store import EpisodeRecord, Store
from vla.images import ImageSource
from vla.label_table import LabelTable
from vla.prompt import prompt

KEPT_FRAMES = 2**20
"""Frames whose actions and proprioception are kept in memory once they are read."""

Prepare = Callable[[Shaped[np.ndarray, "batch views *image"], Sequence[str]], Batch]
"""What a backbone makes of images and prompts."""


class Source(NamedTuple):
    """What samples of both kinds are made from."""

    store: Store
    images: ImageSource
    prepare: Prepare
    history: LabelTable | None = None
    """Latent actions that prompts tell of, where they do."""

    def inputs(
        self,
        views: Int[np.ndarray, "batch views"],
        names: Sequence[str],
        episodes: Int[np.ndarray, " batch"],
        frames: Int[np.ndarray, " batch"],
    ) -> Batch:
        """What the backbone takes of samples, each with its own cameras, by their place in `names`."""
        shown = [self._of_cameras(column, names, episodes, frames) for column in views.T]
        texts = [self.store.episodes[episode].instruction for episode in episodes]
        past = self.history.before(episodes, frames) if self.history else [()] * len(texts)
        return self.prepare(np.stack(shown, axis=1), [prompt(*told) for told in zip(texts, past, strict=True)])

    def _of_cameras(
        self,
        cameras: Int[np.ndarray, " batch"],
        names: Sequence[str],
        episodes: Int[np.ndarray, " batch"],
        frames: Int[np.ndarray, " batch"],
    ) -> Shaped[np.ndarray, "batch *image"]:
        parts = {int(camera): np.flatnonzero(cameras == camera) for camera in np.unique(cameras)}
        seen = {camera: self.images(names[camera], episodes[rows], frames[rows]) for camera, rows in parts.items()}
        whole = np.empty((len(cameras), *next(iter(seen.values())).shape[1:]), next(iter(seen.values())).dtype)
        for camera, rows in parts.items():
            whole[rows] = seen[camera]
        return whole


class LatentDataset:
    """What cameras saw, what was to be done, and the latent action that followed.

    Raises:
        LabelsError: the split has no such sample.

    Each labelled camera is a sample of its own; or, where several `views` are named, a transition is, seen by all of
    them, with the label of the first.
    """

    def __init__(self, source: Source, labels: LatentLabels, split: str, views: Sequence[str] = ()) -> None:
        self.source, self.names = source, tuple(views) or labels.info.views
        records = source.store.select(split=split)
        wanted = [record.index for record in records if set(views) <= set(record.views)]
        chosen = np.isin(labels.episodes, wanted)
        if views:
            chosen &= labels.views == labels.info.views.index(views[0])
        self.episodes, self.frames, self.codes = labels.episodes[chosen], labels.frames[chosen], labels.codes[chosen]
        self.views = labels.views[chosen][:, None]
        if views:
            self.views = np.broadcast_to(np.arange(len(views)), (len(self.codes), len(views)))
        if not len(self):
            raise LabelsError(
                f"no labelled transition of the cameras {list(self.names)} lies in a {split} episode; hold episodes "
                "out with scripts/split_episodes.py, label more with scripts/label_latents.py, or name other views"
            )

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> Batch:
        """What the backbone takes, and `codes` (batch, tokens)."""
        inputs = self.source.inputs(self.views[indices], self.names, self.episodes[indices], self.frames[indices])
        return inputs | {"codes": torch.from_numpy(self.codes[indices]).long()}

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{e}:{f}" for e, f in zip(self.episodes[indices], self.frames[indices], strict=True)]


class DemonstrationDataset:
    """What cameras saw, what was to be done, and the normalised actions that followed."""

    def __init__(
        self,
        source: Source,
        records: Sequence[EpisodeRecord],
        *,
        views: Sequence[str],
        horizon: int,
        actions: Statistics,
        is_bounded: bool,
        proprioception: Statistics | None,
        labels: LabelTable | None = None,
    ) -> None:
        self.source, self.views, self.horizon, self.labels = source, tuple(views), horizon, labels
        self.statistics, self.is_bounded = (actions, proprioception), is_bounded
        self._numbers = np.array([record.index for record in records])
        self._lengths = np.array([record.length for record in records])
        self._ends = np.cumsum(self._lengths)
        self._episode = lru_cache(maxsize=max(1, KEPT_FRAMES // int(self._lengths.max())))(self._read)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, indices: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Episode and frame of each sample."""
        rows = np.searchsorted(self._ends, indices, side="right")
        return self._numbers[rows], indices - (self._ends - self._lengths)[rows]

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> Batch:
        """What the backbone takes, `senses`, `actions` (batch, horizon, dims), which of them are `valid`.

        With labels also `codes`, and which samples are `labelled`: near its end an episode has none.
        """
        episodes, frames = self.locate(indices)
        cameras = np.broadcast_to(np.arange(len(self.views)), (len(indices), len(self.views)))
        told: Batch = {}
        if self.labels is not None:
            labelled = self.labels.has(episodes, frames)
            codes = np.where(labelled[:, None], self.labels.of(episodes, frames), 0)
            told = {"codes": torch.from_numpy(codes).long(), "labelled": torch.from_numpy(labelled)}
        return self.source.inputs(cameras, self.views, episodes, frames) | self.values(episodes, frames) | told

    def values(self, episodes: Int[np.ndarray, " batch"], frames: Int[np.ndarray, " batch"]) -> dict[str, Tensor]:
        """`senses`, `actions`, and which of these lie in the episode (`valid`), without images."""
        pairs = zip(episodes.tolist(), frames.tolist(), strict=True)
        chunks, senses = zip(*[self._sample(episode, frame) for episode, frame in pairs], strict=True)
        lengths = torch.tensor([len(chunk) for chunk in chunks])
        return {
            "senses": torch.from_numpy(np.stack(senses)),
            "actions": torch.stack([_padded(chunk, self.horizon) for chunk in chunks]),
            "valid": torch.arange(self.horizon)[None] < lengths[:, None],
        }

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{e}:{f}" for e, f in zip(*self.locate(indices), strict=True)]

    def _sample(self, episode: int, frame: int) -> tuple[Float[np.ndarray, "steps dims"], Float[np.ndarray, " senses"]]:
        actions, senses = self._episode(episode)
        return actions[frame : frame + self.horizon], senses[frame]

    def _read(self, episode: int) -> tuple[Float[np.ndarray, "frames dims"], Float[np.ndarray, "frames senses"]]:
        of_actions, of_senses = self.statistics
        values = self.source.store.actions(episode)
        actions = of_actions.to_unit(values) if self.is_bounded else of_actions.normalise(values)
        if of_senses is None:
            return actions, np.zeros((len(actions), 0), np.float32)
        senses = self.source.store.proprioception(episode)
        assert senses is not None, "whoever chose the episodes looked"
        return actions, of_senses.normalise(senses)


def _padded(chunk: Float[np.ndarray, "steps dims"], horizon: int) -> Float[Tensor, "horizon dims"]:
    return torch.from_numpy(np.pad(chunk, ((0, horizon - len(chunk)), (0, 0))))
