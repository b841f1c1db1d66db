"""Latent labels of one camera by episode and frame: for fine-tuning with them, and for a history of latent actions."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from core.labels import LabelsError, LatentLabels


class LabelTable:
    """Code indices of the transition that starts at a frame."""

    def __init__(self, labels: LatentLabels, view: str, num_frames: Sequence[int], past: Sequence[int] = ()) -> None:
        """Of a camera.

        Args:
            labels: of a store.
            view: the camera.
            num_frames: frames of each episode of the store.
            past: how many frames before a frame each latent action of its history starts, oldest first.

        Raises:
            LabelsError: there are no labels of that camera.
        """
        if view not in labels.info.views:
            raise LabelsError(f"the labels are of the cameras {list(labels.info.views)}, not of {view!r}")
        chosen = labels.views == labels.info.views.index(view)
        self._starts, self._past = np.concatenate([[0], np.cumsum(num_frames)]), tuple(past)
        self._rows = np.full(int(self._starts[-1]), -1, np.int64)
        self._rows[self._starts[labels.episodes[chosen]] + labels.frames[chosen]] = np.flatnonzero(chosen)
        self._codes = labels.codes

    def has(self, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether a transition starts there."""
        return self._rows[self._starts[episodes] + frames] >= 0

    def of(self, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n tokens"]:
        """Code indices; where there is no label, anything."""
        return self._codes[self._rows[self._starts[episodes] + frames]]

    def before(self, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]) -> list[list[list[int]]]:
        """Latent actions that led to each frame, oldest first; fewer at the beginning of an episode."""
        found: list[list[list[int]]] = [[] for _ in frames]
        for back in self._past:
            rows = np.flatnonzero(frames >= back)
            rows = rows[self.has(episodes[rows], frames[rows] - back)]
            for row, codes in zip(rows, self.of(episodes[rows], frames[rows] - back), strict=True):
                found[row].append(codes.tolist())
        return found
