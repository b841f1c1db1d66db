"""What a problem of a store is: how bad, what, with which episodes, and what to do."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from core.store import EpisodeRecord

Level = Literal["fatal", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fatal", "warning", "note")
"""Training would be wrong or fail; look before you train; good to know."""
MOST_NAMED = 20
"""Episodes that the page names of a problem; it says how many there are in all."""


class Problem(NamedTuple):
    """Something that a person should know before training on the store."""

    level: Level
    name: str
    """For machines: stays the same whatever the numbers are."""
    what: str
    """A sentence with the numbers."""
    advice: str
    """What to do about it."""
    episodes: tuple[int, ...] = ()
    """Positions of the episodes that it concerns; empty: the store as a whole."""
    view: str = ""
    """The camera that it concerns; empty: none in particular."""

    def named(self, episodes: Sequence[EpisodeRecord], most: int | None = None) -> list[str]:
        """The ids of its episodes, or of the first of them."""
        return [episodes[number].episode_id for number in self.episodes[:most]]


def problem(
    level: Level, name: str, what: str, advice: str, episodes: Iterable[int] | np.ndarray = (), view: str = ""
) -> Problem:
    """A problem of some episodes, in order and each once."""
    return Problem(level, name, what, advice, tuple(sorted({int(number) for number in episodes})), view)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """The worst first; within a level those that concern the store as a whole, then those of most episodes."""
    return sorted(problems, key=lambda one: (LEVELS.index(one.level), bool(one.episodes), -len(one.episodes)))


def count_of(number: int, noun: str) -> str:
    """`1 episode`, `3 episodes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
