"""Finding episodes that are the same recording: by what a few of their frames look like, or by what was done."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from core.lazy_frames import LazyFrames

TIMES = 5
"""Frames of an episode that its signature looks at."""
SIDE = 8
"""Cells along each side of a signature's pictures."""
LEAST_CHANGE = 6
"""Grey levels that some cell has to change over an episode; still pictures tell nothing about being the same."""
LARGEST_DIFFERENCE = 3
"""Grey levels by which signatures of one recording differ, once it was compressed again."""
LARGEST_GROUP = 4000
"""Episodes of one length up to which all are compared with all; more are compared for equality."""


class Traits(NamedTuple):
    """What two recordings of one thing have in common."""

    length: int
    signatures: dict[str, bytes]
    """By view."""
    action_hash: str
    """Empty: no actions, or the same one all the time."""
    scene: str
    """Empty: not known."""


def sampled(length: int) -> list[int]:
    """Numbers of the frames that a signature looks at."""
    return np.linspace(0, length - 1, TIMES).round().astype(int).tolist()


def samples(frames: np.ndarray | LazyFrames) -> UInt8[np.ndarray, "times height width 3"]:
    """Those frames."""
    return np.concatenate([frames[number : number + 1] for number in sampled(len(frames))])


def signature(frames: UInt8[np.ndarray, "times height width 3"]) -> bytes:
    """Mean grey levels of the cells of a coarse grid over each of the sampled frames."""
    grey = frames.astype(np.float32).mean(3)
    return np.stack([_cells(picture) for picture in grey]).round().astype(np.uint8).tobytes()


def _cells(picture: Float[np.ndarray, "height width"]) -> np.ndarray:
    bands = [np.linspace(0, size, SIDE + 1).astype(int) for size in picture.shape]
    firsts = [np.minimum(band[:-1], size - 1) for band, size in zip(bands, picture.shape, strict=True)]
    summed = np.add.reduceat(np.add.reduceat(picture, firsts[0], axis=0), firsts[1], axis=1)
    counts = [np.maximum(np.diff(np.append(first, size)), 1) for first, size in zip(firsts, picture.shape, strict=True)]
    return summed / np.outer(*counts)


def hash_of_actions(actions: Float[np.ndarray, "frames dims"] | None) -> str:
    """Equal for equal actions; empty where they tell nothing."""
    if actions is None or len(actions) < 2 or not np.ptp(actions, axis=0).any():
        return ""
    return hashlib.sha256(np.ascontiguousarray(actions, np.float32).tobytes()).hexdigest()[:16]


def same_recordings(traits: Sequence[Traits]) -> list[list[int]]:
    """Groups of two and more episodes (their positions) that are one recording."""
    return [group.tolist() for group in _groups(len(traits), list(_pairs(traits))) if len(group) > 1]


def kept_together(traits: Sequence[Traits]) -> list[list[int]]:
    """All episodes, in groups that a split must not tear: one recording, or one scene."""
    scenes: dict[str, int] = {}
    same = [(scenes.setdefault(t.scene, number), number) for number, t in enumerate(traits) if t.scene]
    return [group.tolist() for group in _groups(len(traits), [*_pairs(traits), *same])]


def _pairs(traits: Sequence[Traits]) -> Iterator[tuple[int, int]]:
    by_action: dict[tuple[int, str], int] = {}
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, trait in enumerate(traits):
        if trait.action_hash:
            yield by_action.setdefault((trait.length, trait.action_hash), number), number
        by_length[trait.length].append(number)
    for numbers in by_length.values():
        yield from _pairs_of_one_length(traits, numbers)


def _pairs_of_one_length(traits: Sequence[Traits], numbers: list[int]) -> Iterator[tuple[int, int]]:
    for view in sorted({view for number in numbers for view in traits[number].signatures}):
        seen = [number for number in numbers if view in traits[number].signatures]
        cells = np.stack([np.frombuffer(traits[number].signatures[view], np.uint8) for number in seen]).astype(np.int16)
        moves = np.ptp(cells.reshape(len(seen), TIMES, -1), axis=1).max(1) >= LEAST_CHANGE
        seen, cells = [number for number, moving in zip(seen, moves, strict=True) if moving], cells[moves]
        if len(seen) > LARGEST_GROUP:
            firsts: dict[bytes, int] = {}
            yield from ((firsts.setdefault(c.tobytes(), n), n) for n, c in zip(seen, cells, strict=True))
            continue
        for place, number in enumerate(seen):
            near = np.abs(cells[place + 1 :] - cells[place]).max(1) <= LARGEST_DIFFERENCE
            yield from ((number, seen[place + 1 + other]) for other in np.flatnonzero(near))


def _groups(count: int, pairs: list[tuple[int, int]]) -> list[np.ndarray]:
    """Positions in groups that the pairs connect, in the order of their first members."""
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if count else []
    return sorted(groups, key=lambda group: int(group[0]))
