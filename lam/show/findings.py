"""What is wrong with a latent action model as far as the page can tell, in sentences; shares with intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from lam.show.agreement import CameraPair, Interval
from lam.show.transplant import Transplant

COLLAPSED = 2.0
"""Perplexity below which a token hardly says anything."""
FEW_EPISODES = 20


class Share(NamedTuple):
    """A part of a whole."""

    part: int
    n: int
    wilson95: Interval

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.part / max(self.n, 1)


def share_of(part: int, n: int) -> Share:
    """The share with Wilson's interval; everything from 0 to 1 of nothing."""
    interval = binomtest(part, n).proportion_ci(method="wilson") if n else Interval(0.0, 1.0)
    return Share(part, n, Interval(float(interval.low), float(interval.high)))


class Moved(NamedTuple):
    """Of the transplants of one camera, each onto another episode: how many made something move."""

    camera: str
    moved: Share
    control: Share
    """The same with the receiver's own latent action: what the decoder can do at all."""
    copies: Share
    """Results that are most like the donor's later frame."""


def moved_by_camera(found: Sequence[Transplant], cameras: Sequence[int], names: Sequence[str]) -> list[Moved]:
    """One row a camera; `cameras` are those of the transplants."""
    rows = []
    for number, name in enumerate(names):
        of_camera = [one for one, camera in zip(found, cameras, strict=True) if camera == number]
        if of_camera:
            kinds = ("is_moved", "is_control_moved", "is_copy")
            parts = (sum(getattr(one, kind) for one in of_camera) for kind in kinds)
            rows.append(Moved(name, *(share_of(part, len(of_camera)) for part in parts)))
    return rows


def codebook_problems(
    perplexity: Float[np.ndarray, " tokens"], used: Sequence[int], num_codes: int, clips: int
) -> list[str]:
    """Tokens that say hardly anything, and codes that are never used, on `clips` held-out clips."""
    low = [token for token, value in enumerate(perplexity) if value < COLLAPSED]
    found = []
    if low:
        values = ", ".join(f"token {token}: {perplexity[token]:.2f}" for token in low)
        found.append(
            f"Collapsed: {len(low)} of {len(perplexity)} tokens use fewer than {COLLAPSED:g} codes in effect "
            f"(perplexity of {num_codes}: {values}; {clips} clips). What these tokens show below means nothing."
        )
    unused = [f"token {token}: {num_codes - n} of {num_codes}" for token, n in enumerate(used) if n < num_codes]
    if unused:
        found.append(f"Codes that none of the {clips} held-out clips use: {', '.join(unused)}.")
    return found


def agreement_problems(pairs: Sequence[CameraPair]) -> list[str]:
    """Pairs of cameras that agree no better than chance."""
    found = []
    for pair in pairs:
        low = [f"token {token}" for token, one in enumerate(pair.tokens) if not one.is_above_chance]
        low += ["all tokens at once"] * (not pair.all_tokens.is_above_chance)
        if low:
            one = pair.all_tokens
            found.append(
                f"{pair.first} and {pair.second} are not shown to agree better than chance on {', '.join(low)}: the "
                f"95 % interval of kappa reaches 0 ({one.transitions} transitions of {one.episodes} episodes)."
            )
    few = sorted({pair.all_tokens.episodes for pair in pairs if pair.all_tokens.episodes < FEW_EPISODES})
    if few:
        found.append(f"Only {few[0]} held-out episodes were seen by two cameras: the intervals of agreement are rough.")
    return found


def transplant_problems(rows: Sequence[Moved]) -> list[str]:
    """Cameras where transplants hardly move anything; where not even the control does, that instead."""
    found = []
    for row in rows:
        if row.control.wilson95.low < 0.5:
            found.append(
                f"{row.camera}: even with its own latent action, the decoded result is nearer to the later frame than "
                f"to the first in only {row.control.part} of {row.control.n} scenes (the 95 % interval reaches half), "
                "so the transplants of this camera tell little about its latent actions."
            )
        elif row.moved.wilson95.low < 0.5:
            found.append(
                f"{row.camera}: only {row.moved.part} of {row.moved.n} transplants end nearer to another real frame "
                "than to the frame they started from."
            )
        if row.copies.wilson95.low > 0.5:
            found.append(
                f"{row.camera}: {row.copies.part} of {row.copies.n} transplants end most like the donor's later frame: "
                "the latent action tells where the donor ended more than how it moved."
            )
    return found
