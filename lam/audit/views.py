"""How much a latent action tells of the camera: codes of the same transitions, each seen by the same number of cameras.

The encoder is deterministic: within a transition only the camera differs, so what is uncertain about the code there is
what the code tells of the camera.
"""

from itertools import combinations

import numpy as np
from jaxtyping import Float, Int


def view_entropy_bits(codes: Int[np.ndarray, "transitions views tokens"]) -> Float[np.ndarray, " transitions"]:
    """I(code; camera | transition) of each transition, the tokens' entropies added up (Miller-Madow), in bits.

    An upper bound of the joint code's where tokens are redundant; at most log2(views) a token before the correction.

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
