"""Which clips stand for a code, which frame stands for decoded features, and the plane in which latents differ most."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def distances_to_codes(
    encodings: Float[np.ndarray, "n tokens dim"],
    codes: Float[np.ndarray, "n tokens dim"],
    indices: Int[np.ndarray, "n tokens"],
    codes_are_encodings: bool,
) -> Float[np.ndarray, "n tokens"]:
    """How far each encoding lies from its code; from the mean encoding of the code where codes live elsewhere."""
    if codes_are_encodings:
        return np.linalg.norm(encodings - codes, axis=-1)
    out = np.empty(indices.shape)
    for token, column in enumerate(indices.T):
        for code in np.unique(column):
            rows = column == code
            of_code = encodings[rows, token]
            out[rows, token] = np.linalg.norm(of_code - of_code.mean(0), axis=-1)
    return out


def nearest_of_each(
    distances: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " nearest"]:
    """Positions of the `count` smallest distances, nearest first, at most one of each group."""
    order = np.argsort(distances, kind="stable")
    _, first = np.unique(groups[order], return_index=True)
    return order[np.sort(first)][:count]


class Plane(NamedTuple):
    """Points on their first two principal components."""

    points: Float[np.ndarray, "n 2"]
    explained: tuple[float, float]
    """Share of the variance along each."""


def principal_plane(values: Float[np.ndarray, "n dims"]) -> Plane:
    """The two directions in which the values differ most."""
    centred = values.astype(np.float64) - values.mean(0)
    left, spread, right = np.linalg.svd(centred, full_matrices=False)
    variance = spread**2 / max(float((spread**2).sum()), 1e-12)
    points = np.zeros((len(values), 2))
    kept = min(2, len(spread))
    signs = np.sign(right[np.arange(kept), np.abs(right[:kept]).argmax(1)])
    points[:, :kept] = left[:, :kept] * spread[:kept] * signs
    padded = [*map(float, variance[:2]), 0.0, 0.0]
    return Plane(points, (padded[0], padded[1]))


def mean_squared_distances(
    queries: Float[np.ndarray, "queries patches dim"], gallery: Float[np.ndarray, "frames patches dim"]
) -> Float[np.ndarray, "queries frames"]:
    """Mean squared difference of every query from every frame; a few frames at a time, to save memory."""
    flat = queries.reshape(len(queries), -1).astype(np.float32)
    centre = flat.mean(0)
    flat = flat - centre
    out = np.empty((len(flat), len(gallery)), np.float32)
    for start in range(0, len(gallery), 64):
        part = gallery[start : start + 64]
        frames = part.reshape(len(part), -1).astype(np.float32) - centre
        squares = np.square(flat).sum(1)[:, None] + np.square(frames).sum(1)
        out[:, start : start + 64] = squares - 2 * flat @ frames.T
    return np.maximum(out, 0) / flat.shape[1]
