"""How much a latent action tells of the camera: codes of the same transitions, each seen by the same number of cameras.

The encoder is deterministic: within a transition only the camera differs, so what is uncertain about the code there is
what the code tells of the camera.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class SeenTogether(NamedTuple):
    """Rows of the transitions that the same number of cameras saw."""

    rows: Int[np.ndarray, "transitions views"]
    """Row of each transition in each of its cameras, cameras in order."""
    cameras: Int[np.ndarray, "transitions views"]
    """Which cameras these are."""


def seen_together(transitions: Int[np.ndarray, " n"], cameras: Int[np.ndarray, " n"]) -> list[SeenTogether]:
    """Rows of the transitions that two and more cameras saw, by the number of cameras."""
    order = np.lexsort((cameras, transitions))
    _, first, counts = np.unique(transitions[order], return_index=True, return_counts=True)
    found = []
    for views in np.unique(counts[counts > 1]):
        rows = order[first[counts == views][:, None] + np.arange(views)]
        found.append(SeenTogether(rows, cameras[rows]))
    return found


def view_entropy_bits(codes: Int[np.ndarray, "transitions views tokens"]) -> Float[np.ndarray, " transitions"]:
    """I(token; camera | transition) of each transition, added up over tokens (Miller-Madow), in bits.

    Not the joint code's, which is at most log2(views): how far single tokens are decided by the camera. At most
    log2(views) a token before the correction.

    Raises:
        ValueError: fewer than two views.
    """
    views = codes.shape[1]
    if views < 2:
        raise ValueError(f"{views} view of each transition; at least 2 are needed to compare cameras")
    same = codes[:, :, None] == codes[:, None]
    share = same.mean(axis=2)
    entropy = -np.log2(share).mean(axis=1)
    different = (1.0 / same.sum(axis=2)).sum(axis=1)
    return (entropy + (different - 1) / (2 * views * np.log(2))).sum(axis=1)


def joint_view_bits(codes: Int[np.ndarray, "transitions views tokens"]) -> float:
    """I(code; camera | transition) of all tokens together, in bits; log2(views) where each camera gets its own code.

    With a few cameras and many codes that is nearly always so, whatever the model: `view_entropy_bits` says more.
    """
    same = (codes[:, :, None] == codes[:, None]).all(axis=3)
    return float(-np.log2(same.mean(axis=2)).mean())


def most_view_entropy_bits(views: int, tokens: int) -> float:
    """What `view_entropy_bits` gives where every camera gets a code of its own in every token."""
    return tokens * float(np.log2(views) + (views - 1) / (2 * views * np.log(2)))


def view_agreement(codes: Int[np.ndarray, "transitions views tokens"]) -> tuple[float, float]:
    """How often two cameras give a token the same code, and that beyond chance (Cohen's kappa), means over tokens.

    Chance is two draws from the code's own distribution: a collapsed codebook agrees always and has no kappa (NaN).
    """
    pairs = list(combinations(range(codes.shape[1]), 2))
    agreement = np.mean([codes[:, one] == codes[:, other] for one, other in pairs], axis=(0, 1))
    chance = np.array([np.square(np.unique(t, return_counts=True)[1] / t.size).sum() for t in np.moveaxis(codes, 2, 0)])
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(chance < 1, (agreement - chance) / (1 - chance), np.nan)
    return float(agreement.mean()), float(np.nanmean(kappa)) if np.isfinite(kappa).any() else float("nan")


def equal_share(codes: Int[np.ndarray, "transitions views tokens"]) -> Float[np.ndarray, " transitions"]:
    """Share of the pairs of cameras and tokens of each transition whose codes are equal."""
    pairs = list(combinations(range(codes.shape[1]), 2))
    return np.mean([codes[:, one] == codes[:, other] for one, other in pairs], axis=(0, 2))
