"""Samples for pretraining (image, instruction, latent codes) and for fine-tuning (image, instruction, action chunk)."""

from collections.abc import Sequence
from functools import lru_cache

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

KEPT_FRAMES = 2**20
"""Frames whose actions and proprioception are kept in memory once they are read."""


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
        self.store, self.cache, self.view, self.horizon = store, cache, view, horizon
        self.statistics = (actions, proprioception)
        self._numbers = np.array([record.index for record in records])
        self._lengths = np.array([record.length for record in records])
        self._ends = np.cumsum(self._lengths)
        self._episode = lru_cache(maxsize=max(1, KEPT_FRAMES // int(self._lengths.max())))(self._read)
        self.instructions = InstructionTable(store, tokenizer)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, indices: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Episode and frame of each sample."""
        rows = np.searchsorted(self._ends, indices, side="right")
        return self._numbers[rows], indices - (self._ends - self._lengths)[rows]

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> dict[str, Tensor]:
        """`features`, `ids`, `proprioception`, `actions` (batch, horizon, dims) and their `mask` (batch, horizon)."""
        episodes, frames = self.locate(indices)
        chunks, senses = zip(
            *[self._sample(int(e), int(f)) for e, f in zip(episodes, frames, strict=True)], strict=True
        )
        lengths = torch.tensor([len(chunk) for chunk in chunks])
        return {
            "features": torch.from_numpy(self.cache.features(self.view, episodes, frames)),
            "ids": self.instructions(episodes),
            "proprioception": torch.from_numpy(np.stack(senses)),
            "actions": torch.stack([_padded(chunk, self.horizon) for chunk in chunks]),
            "mask": torch.arange(self.horizon)[None] < lengths[:, None],
        }

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [f"{e}:{f}" for e, f in zip(*self.locate(indices), strict=True)]

    def _sample(self, episode: int, frame: int) -> tuple[Float[np.ndarray, "steps dims"], Float[np.ndarray, " senses"]]:
        actions, senses = self._episode(episode)
        return actions[frame : frame + self.horizon], senses[frame]

    def _read(self, episode: int) -> tuple[Float[np.ndarray, "frames dims"], Float[np.ndarray, "frames senses"]]:
        of_actions, of_senses = self.statistics
        actions = of_actions.normalise(self.store.actions(episode))
        if of_senses is None:
            return actions, np.zeros((len(actions), 0), np.float32)
        senses = self.store.proprioception(episode)
        assert senses is not None, "whoever chose the episodes looked"
        return actions, of_senses.normalise(senses)


def _padded(chunk: Float[np.ndarray, "steps dims"], horizon: int) -> Float[Tensor, "horizon dims"]:
    return torch.from_numpy(np.pad(chunk, ((0, horizon - len(chunk)), (0, 0))))
