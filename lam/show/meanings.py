"""What a code, or a whole tuple of codes, stands for: how often it is used, typical clips, and where the robot went."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lam.show.nearest import distances_to_codes, nearest_of_each
from lam.show.sample import Clips, Motion


class Direction(NamedTuple):
    """Where the robot was told to go during some clips."""

    mean: tuple[float, float]
    """Mean of the summed x and y."""
    steadiness: float
    """Length of the mean of unit vectors: 1 is always the same way, 0 all ways alike; NaN where nothing moves."""
    moving: int
    """Clips with more than little motion, which alone count towards both."""


class Meaning(NamedTuple):
    """A code of a token, or a tuple of codes."""

    codes: tuple[int, ...]
    uses: int
    episodes: int
    """In how many episodes."""
    examples: Int[np.ndarray, " examples"]
    """Rows of the clips whose encoding lies nearest, at most one an episode."""
    direction: Direction | None
    """None where actions are not known."""


def meanings_of_token(
    clips: Clips, distances: Float[np.ndarray, "n tokens"], token: int, motion: Motion | None, most: int, examples: int
) -> tuple[list[Meaning], int]:
    """The codes of a token that occur in most episodes, and how many used ones are left out."""
    assert clips.indices is not None
    column = clips.indices[:, token : token + 1]
    return _meanings(clips, column, distances[:, token], motion, most, examples)


def meanings_of_tuples(
    clips: Clips, distances: Float[np.ndarray, "n tokens"], motion: Motion | None, most: int, examples: int
) -> tuple[list[Meaning], int]:
    """The tuples that occur in most episodes, and how many others are left out."""
    assert clips.indices is not None
    return _meanings(clips, clips.indices, np.linalg.norm(distances, axis=1), motion, most, examples)


def distances_of(clips: Clips, bottleneck: str) -> Float[np.ndarray, "n tokens"]:
    """How far each encoding lies from its code."""
    assert clips.indices is not None
    return distances_to_codes(clips.encodings, clips.codes, clips.indices, bottleneck in ("vq", "vq_ema"))


def direction_of(motion: Motion, rows: Int[np.ndarray, " rows"]) -> Direction:
    """The direction of some clips."""
    xy = motion.xy[rows][motion.is_moving[rows]]
    if not len(xy):
        return Direction((0.0, 0.0), float("nan"), 0)
    units = xy / np.linalg.norm(xy, axis=1, keepdims=True)
    x, y = xy.mean(0)
    return Direction((float(x), float(y)), float(np.linalg.norm(units.mean(0))), len(xy))


def _meanings(
    clips: Clips,
    codes: Int[np.ndarray, "n tokens"],
    distances: Float[np.ndarray, " n"],
    motion: Motion | None,
    most: int,
    examples: int,
) -> tuple[list[Meaning], int]:
    values, of_row, uses = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    of_row = of_row.reshape(-1)
    in_episode = np.unique(np.stack([of_row, clips.episodes]), axis=1)[0]
    episodes = np.bincount(in_episode, minlength=len(values))
    shown = np.lexsort((-uses, -episodes))[:most]
    found = []
    for number in shown:
        rows = np.flatnonzero(of_row == number)
        nearest = rows[nearest_of_each(distances[rows], clips.episodes[rows], examples)]
        direction = None if motion is None else direction_of(motion, rows)
        code = tuple(map(int, values[number]))
        found.append(Meaning(code, int(uses[number]), int(episodes[number]), nearest, direction))
    return found, len(values) - len(shown)
