"""Problems of what the cameras show: nothing, always the same, or what another camera shows."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from core.duplicates import LARGEST_DIFFERENCE, LEAST_CHANGE
from core.inspection.pictures import Look, Looks
from core.inspection.problems import Problem, count_of, problem
from core.inspection.values import Values
from core.store import Store

BLANK = 6
"""Grey levels between the cells of a picture on which there is something to see."""
STILL = 3
"""Grey levels by which a cell changes at most in pictures that are the same but for compression (2 were measured)."""
MOVING = 8
"""Grey levels by which a cell changes where something moves."""
STOPPED = 4
"""Looked-at frames at the end of an episode, all the same, of a camera that stopped."""
ACTS = 0.1
"""Part of the usual range of values through which an episode's go where the robot does something."""


def picture_problems(store: Store, looks: Looks, *values: Values | None) -> Iterator[Problem]:
    """All problems of this kind; `values` tell in which episodes the robot does something."""
    yield from _unreadable(looks)
    active = _active(values)
    by_episode: dict[int, list[Look]] = {}
    for look in looks.found:
        by_episode.setdefault(look.episode, []).append(look)
    for view in store.info.views:
        seen = looks.of_view(view)
        if not seen:
            continue
        blank = [look.episode for look in seen if _is_blank(look)]
        partly = [look.episode for look in seen if (look.contrast < BLANK).any() and not _is_blank(look)]
        frozen = [look.episode for look in seen if _is_frozen(look, by_episode[look.episode], active)]
        stopped = [look.episode for look in seen if _has_stopped(look, by_episode[look.episode])]
        yield from _blank(view, blank, partly, seen)
        yield from _frozen(view, frozen, stopped, seen)
    yield from _same_views(store, looks)


def _unreadable(looks: Looks) -> Iterator[Problem]:
    if looks.unreadable:
        first = next(iter(looks.unreadable.values()))
        yield problem(
            "fatal",
            "unreadable_frames",
            f"In {count_of(len({e for e, _ in looks.unreadable}), 'looked-at episode')}, frames cannot be read, the "
            f"first: {first}",
            "Restore the files, or write the store again; training stops where it meets such a frame.",
            [episode for episode, _ in looks.unreadable],
        )


def _active(values: Sequence[Values | None]) -> set[int] | None:
    """Episodes in which the robot does something; None where that is not known of any."""
    known = [one for one in values if one is not None and len(one.episodes)]
    active: set[int] = set()
    for one in known:
        usual = one.q99 - one.q01
        acts = ((one.high - one.low > ACTS * usual) & (usual > 0)).any(1)
        active |= set(one.episodes[acts].tolist())
    return active if known else None


def _is_blank(look: Look) -> bool:
    return bool((look.contrast < BLANK).all())


def _is_frozen(look: Look, together: Sequence[Look], active: set[int] | None) -> bool:
    """Whether nothing changes although something happens, or although nothing is known but pictures."""
    if _is_blank(look) or (look.change > STILL).any():
        return False
    others = [other for other in together if other.view != look.view]
    if any((other.change > MOVING).any() for other in others):
        return True
    return look.episode in active if active is not None else not others


def _has_stopped(look: Look, together: Sequence[Look]) -> bool:
    """Whether a camera that showed change shows none to the end, while another one still does."""
    moving = np.flatnonzero(look.change > STILL)
    if not len(moving) or len(look.change) - 1 - moving[-1] < STOPPED:
        return False
    rest = slice(int(moving[-1]) + 1, None)
    return any((other.change[rest] > MOVING).sum() >= STOPPED - 1 for other in together if other.view != look.view)


def _blank(view: str, blank: list[int], partly: list[int], seen: Sequence[Look]) -> Iterator[Problem]:
    if blank:
        grey = float(np.mean([look.brightness.mean() for look in seen if look.episode in set(blank)]))
        yield problem(
            "fatal" if len(blank) > len(seen) / 2 else "warning",
            "black_camera",
            f"View {view} shows nothing, one colour all over (brightness {grey:.0f} of 255), in {len(blank)} of the "
            f"{len(seen)} looked-at episodes.",
            "Leave these episodes, or the view, out of the store.",
            blank,
            view,
        )
    if partly:
        yield problem(
            "warning",
            "black_frames",
            f"View {view} shows one colour all over at times in {len(partly)} of the {len(seen)} looked-at episodes.",
            "Look at these recordings; a camera may have dropped out.",
            partly,
            view,
        )


def _frozen(view: str, frozen: list[int], stopped: list[int], seen: Sequence[Look]) -> Iterator[Problem]:
    if frozen:
        yield problem(
            "fatal" if len(frozen) > len(seen) / 2 else "warning",
            "frozen_camera",
            f"View {view} shows the same picture throughout in {len(frozen)} of the {len(seen)} looked-at episodes, "
            "although something happens in them.",
            "Leave these episodes, or the view, out of the store.",
            frozen,
            view,
        )
    if stopped:
        yield problem(
            "warning",
            "camera_stopped",
            f"View {view} does not change any more from some frame on, while another one does, in {len(stopped)} of "
            f"the {len(seen)} looked-at episodes.",
            "Look at the ends of these recordings; cut them where the camera stopped.",
            stopped,
            view,
        )


def _same_views(store: Store, looks: Looks) -> Iterator[Problem]:
    for first, second in combinations(store.info.views, 2):
        pictures = [{look.episode: look for look in looks.of_view(view)} for view in (first, second)]
        both = [number for number in pictures[0] if number in pictures[1]]
        same = [number for number in both if _are_same(pictures[0][number], pictures[1][number])]
        if same:
            yield problem(
                "fatal" if len(same) > len(both) / 2 else "warning",
                "same_view_twice",
                f"The views {first} and {second} show the same in {len(same)} of the {len(both)} looked-at episodes "
                "that have both: what one says about the other is worth nothing.",
                "Give each view its own source in the mapping.",
                same,
                first,
            )


def _are_same(first: Look, second: Look) -> bool:
    cells = [np.frombuffer(look.signature, np.uint8).astype(np.int16) for look in (first, second)]
    # An empty scene tells nothing, but neither has a blank picture contrast.
    is_clear = min(first.contrast.max(), second.contrast.max()) >= 2 * LEAST_CHANGE
    return bool(is_clear and np.abs(cells[0] - cells[1]).max() <= LARGEST_DIFFERENCE)
