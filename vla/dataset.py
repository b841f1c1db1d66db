"""Samples for pretraining (image, instruction, latent codes) and for fine-tuning (image, instruction, action chunk)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.frames import FeatureCache
from core.labels import LatentLabels
from core.statistics import Statistics
from core.store import EpisodeRecord, Store
from vla.prompt import prompt
from vla.tokens import LatentTokenizer


class InstructionTable:
    """Token ids of every instruction of a store, by episode."""

    def __init__(self, store: Store, tokenizer: LatentTokenizer) -> None:
        texts = sorted({record.instruction for record in store.episodes})
        self.ids = tokenizer.encode([prompt(text) for text in texts])
        self.of_episode = np.array([texts.index(record.instruction) for record in store.episodes])

    def __call__(self, episodes: Int[np.ndarray, " batch"]) -> Int[Tensor, "batch text"]:
        """Token ids, padded on the left."""
        return self.ids[self.of_episode[episodes]]


class LatentDataset:
    """What a camera saw, what was to be done, and the latent action that followed; each labelled camera is a sample."""

    def __init__(
        self, store: Store, cache: FeatureCache, labels: LatentLabels, tokenizer: LatentTokenizer, split: str
    ) -> None:
        wanted = [record.index for record in store.select(split=split)]
        chosen = np.isin(labels.episodes, wanted)
        self.episodes, self.frames = labels.episodes[chosen], labels.frames[chosen]
        self.views, self.codes = labels.views[chosen], labels.codes[chosen]
        self.names, self.cache = labels.info.views, cache
        self.instructions = InstructionTable(store, tokenizer)

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> dict[str, Tensor]:
        """`features` (batch, patches, dim), `ids` (batch, text), `codes` (batch, tokens)."""
        episodes, frames, views = self.episodes[indices], self.frames[indices], self.views[indices]
        features = np.empty((len(indices), self.cache.num_patches, self.cache.dim), np.float16)
        for view in np.unique(views):
            rows = views == view
            features[rows] = self.cache.features(self.names[view], episodes[rows], frames[rows])
        return {
            "features": torch.from_numpy(features),
            "ids": self.instructions(episodes),
            "codes": torch.from_numpy(self.codes[indices]).long(),
        }

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{e}:{f}" for e, f in zip(self.episodes[indices], self.frames[indices], strict=True)]


class DemonstrationDataset:
    """What a camera saw, what was to be done, and the normalised actions that followed."""

    def __init__(
        self,
        store: Store,
        cache: FeatureCache,
        tokenizer: LatentTokenizer,
        records: Sequence[EpisodeRecord],
        *,
        view: str,
        horizon: int,
        actions: Statistics,
        proprioception: Statistics | None,
    ) -> None:
        self.cache, self.view, self.horizon = cache, view, horizon
        self.actions = {r.index: actions.normalise(store.actions(r.index)) for r in records}
        self.senses = {r.index: _senses(store, r, proprioception) for r in records}
        starts = [(r.index, frame) for r in records for frame in range(r.length)]
        self.episodes, self.frames = (np.array(column) for column in zip(*starts, strict=True))
        self.instructions = InstructionTable(store, tokenizer)

    def __len__(self) -> int:
        return len(self.episodes)

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> dict[str, Tensor]:
        """`features`, `ids`, `proprioception`, `actions` (batch, horizon, dims) and their `mask` (batch, horizon)."""
        episodes, frames = self.episodes[indices], self.frames[indices]
        chunks = [self._chunk(int(e), int(f)) for e, f in zip(episodes, frames, strict=True)]
        lengths = torch.tensor([len(chunk) for chunk in chunks])
        return {
            "features": torch.from_numpy(self.cache.features(self.view, episodes, frames)),
            "ids": self.instructions(episodes),
            "proprioception": torch.from_numpy(
                np.stack([self.senses[int(e)][int(f)] for e, f in zip(episodes, frames, strict=True)])
            ),
            "actions": torch.stack([_padded(chunk, self.horizon) for chunk in chunks]),
            "mask": torch.arange(self.horizon)[None] < lengths[:, None],
        }

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{e}:{f}" for e, f in zip(self.episodes[indices], self.frames[indices], strict=True)]

    def _chunk(self, episode: int, frame: int) -> Float[np.ndarray, "steps dims"]:
        return self.actions[episode][frame : frame + self.horizon]


def _padded(chunk: Float[np.ndarray, "steps dims"], horizon: int) -> Float[Tensor, "horizon dims"]:
    return torch.from_numpy(np.pad(chunk, ((0, horizon - len(chunk)), (0, 0))))


def _senses(store: Store, record: EpisodeRecord, statistics: Statistics | None) -> Float[np.ndarray, "frames senses"]:
    if statistics is None:
        return np.zeros((record.length, 0), np.float32)
    values = store.proprioception(record.index)
    assert values is not None
    return statistics.normalise(values)
