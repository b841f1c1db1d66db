"""Which cameras of a transition explain which: all pairs, or a few so that cost does not grow with their number."""

from functools import lru_cache
from itertools import combinations
from typing import NamedTuple


class ViewPairs(NamedTuple):
    """Slots stand for cameras; who takes which slot is drawn anew for each transition."""

    slots: int
    """Cameras that are seen at all."""
    own: tuple[int, ...]
    """Slots that explain themselves."""
    cross: tuple[tuple[int, int], ...]
    """(target, source): the source's latent action explains the target's future."""


@lru_cache(maxsize=256)
def view_pairs(views: int, limit: int) -> ViewPairs:
    """At most `limit` own and `limit` cross pairs of a transition that `views` cameras saw; 0: all of them.

    Both directions of a pair come before another pair, so that few cameras have to be encoded.
    """
    both = [pair for one, other in combinations(range(views), 2) for pair in ((one, other), (other, one))]
    cross = tuple(both[: limit or None])
    slots = 1 + max((slot for pair in cross for slot in pair), default=0)
    return ViewPairs(slots, tuple(range(slots))[: limit or None], cross)
