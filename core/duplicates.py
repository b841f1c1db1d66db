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
FASTEST = 4
"""How many times more than between its sampled frames a recording changes from one frame to the next."""
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
    """All episodes, in groups that a split must not tear: one recording, or one scene unless all are of the same."""
    scenes: dict[str, int] = {}
    same = [(scenes.setdefault(t.scene, number), number) for number, t in enumerate(traits) if t.scene]
    if len({t.scene for t in traits}) == 1:
        same = []
    return [group.tolist() for group in _groups(len(traits), [*_pairs(traits), *same])]


def _pairs(traits: Sequence[Traits]) -> Iterator[tuple[int, int]]:
    by_action: dict[tuple[int, str], int] = {}
    by_view: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, trait in enumerate(traits):
        if trait.action_hash:
            yield by_action.setdefault((trait.length, trait.action_hash), number), number
        for view in trait.signatures:
            by_view[view][trait.length].append(number)
    for view, by_length in by_view.items():
        for length, numbers in by_length.items():
            looks = _Looks.of(traits, numbers, view)
            yield from _pairs_of_looks(looks, looks)
            if length - 1 in by_length:
                yield from _pairs_of_looks(looks, _Looks.of(traits, by_length[length - 1], view))


class _Looks(NamedTuple):
    """What one camera saw in the episodes of one length."""

    length: int
    numbers: np.ndarray
    """Of the episodes."""
    cells: np.ndarray
    """(episode, time, cell)"""

    @classmethod
    def of(cls, traits: Sequence[Traits], numbers: list[int], view: str) -> "_Looks":
        signed = np.stack([np.frombuffer(traits[number].signatures[view], np.uint8) for number in numbers])
        cells = signed.astype(np.int16).reshape(len(numbers), TIMES, -1)
        return cls(traits[numbers[0]].length, np.array(numbers), cells)

    def moving(self, times: np.ndarray) -> "_Looks":
        """Those whose pictures at these times tell something: fewer of them have to change more."""
        least = LEAST_CHANGE if times.all() else 3 * LARGEST_DIFFERENCE
        moves = np.ptp(self.cells[:, times], axis=1).max(1) >= least
        return self._replace(numbers=self.numbers[moves], cells=self.cells[moves])


def _pairs_of_looks(longer: _Looks, shorter: _Looks) -> Iterator[tuple[int, int]]:
    """Pairs of one length, or of which one lacks the last frame.

    Even then at least two of the sampled frames are the same ones, the first and one on the way. These have to agree
    and to show motion; the others are neighbours, and may differ by what a frame changes. Of 880 rendered episodes of
    one scene without their last frame, nine of ten are found so, and none of 17160 pairs of different ones.
    """
    same = np.equal(sampled(longer.length), sampled(shorter.length))
    longer, shorter = longer.moving(same), shorter.moving(same)
    fastest = FASTEST * (TIMES - 1) / max(1, longer.length - 1) * np.ptp(longer.cells, axis=1).max(1, initial=0)
    for place, agreeing in enumerate(_near(longer.cells[:, same], shorter.cells[:, same])):
        near = agreeing[agreeing > place] if longer.length == shorter.length else agreeing
        apart = np.abs(shorter.cells[near] - longer.cells[place]).max((1, 2), initial=0)
        for other in near[apart <= LARGEST_DIFFERENCE + fastest[place]]:
            yield int(longer.numbers[place]), int(shorter.numbers[other])


def _near(left: np.ndarray, right: np.ndarray) -> Iterator[np.ndarray]:
    """For each on the left, those on the right (their positions) that agree with it in every cell."""
    if not len(left) or not len(right):
        return
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    if max(len(left), len(right)) > LARGEST_GROUP:
        firsts: dict[bytes, int] = {}
        for place, cells in enumerate(right):
            firsts.setdefault(cells.tobytes(), place)
        yield from (np.array([firsts[key]] if (key := cells.tobytes()) in firsts else [], int) for cells in left)
        return
    telling = int(right.std(0).argmax())  # a cell by which most need not be compared in the others
    order = np.argsort(right[:, telling], kind="stable")
    levels = right[order, telling]
    for cells in left:
        lowest, highest = cells[telling] - LARGEST_DIFFERENCE, cells[telling] + LARGEST_DIFFERENCE
        near = order[np.searchsorted(levels, lowest) : np.searchsorted(levels, highest, side="right")]
        yield near[np.abs(right[near] - cells).max(1, initial=0) <= LARGEST_DIFFERENCE]


def _groups(count: int, pairs: list[tuple[int, int]]) -> list[np.ndarray]:
    """Positions in groups that the pairs connect, in the order of their first members."""
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if count else []
    return sorted(groups, key=lambda group: int(group[0]))
