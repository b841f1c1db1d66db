"""What codes say where nothing moved, and what becomes of them in another scene."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from core.store import Store
from core.vision import VisualEncoder
from lam.audit.mutual_information import code_entropy_bits
from lam.audit.sections.numbers import Null, Number, Table, jackknife_number, mean_number, ratio_number
from lam.audit.subjects import BATCH, Said, say_of
from lam.dataset import pooled
from lam.model import LatentActionModel

SHIFTS = (1, 2, 4, 8)
"""Pixels of the stored frames."""


def zero_motion_numbers(real: Said, still: Said, episodes: Int[np.ndarray, " n"], seed: int = 0) -> dict[str, Number]:
    """What a model says of pairs of equal frames, relative to real transitions.

    A latent action that is nothing but motion gives one encoding to all of them: entropy 0, share 1, spread 0.
    """
    values, index, counts = np.unique(still.codes, axis=0, return_inverse=True, return_counts=True)
    is_commonest = index.reshape(-1) == counts.argmax()
    commonest = (real.codes == values[counts.argmax()]).all(axis=1)
    centre = still.encodings.mean(axis=0)
    spread = np.square(still.encodings - centre).sum(axis=(1, 2))
    reach = np.square(real.encodings - centre).sum(axis=(1, 2))
    entropy = Null("real transitions", code_entropy_bits(real.codes))
    return {
        "entropy": jackknife_number(lambda rows: code_entropy_bits(still.codes[rows]), episodes, entropy, seed),
        "commonest": mean_number(
            is_commonest.astype(float), episodes, Null("real transitions", float(commonest.mean())), seed
        ),
        "spread": ratio_number(spread, np.maximum(reach, 1e-12), episodes, Null("all scene, no motion", 1.0), seed),
    }


class ShiftedFrames(NamedTuple):
    """Features of pairs (a frame, the same shifted by pixels), for each of `SHIFTS` and unshifted."""

    rows: Int[np.ndarray, " frames"]
    """Rows of the sample whose first frames these are."""
    pairs: dict[int, Float[np.ndarray, "frames 2 patches dim"]]
    """By pixels; 0: not shifted."""
    size: tuple[int, int]
    """Height and width of the frames."""


def shifted(image: UInt8[np.ndarray, "h w 3"], pixels: int, direction: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image moved right, left, down or up (direction 0 to 3), the edge repeated."""
    axis, sign = (1 - direction // 2), (1 if direction % 2 == 0 else -1)
    rows = np.clip(np.arange(image.shape[axis]) - sign * pixels, 0, image.shape[axis] - 1)
    return np.take(image, rows, axis=axis)


def shifted_frames(
    store: Store,
    encoder: VisualEncoder,
    views: tuple[str, ...],
    where: tuple[Int[np.ndarray, " frames"], Int[np.ndarray, " frames"], Int[np.ndarray, " frames"]],
    rows: Int[np.ndarray, " frames"],
    patches: int,
    seed: int = 0,
) -> ShiftedFrames:
    """Frames (episode, frame, number of the view) encoded as they are and shifted, each in a direction of its own.

    Raises:
        ValueError: the encoder's grid cannot be pooled to so many patches.
    """
    episodes, frames, cameras = where
    pool = round((encoder.num_patches / patches) ** 0.5)
    if pool < 1 or encoder.num_patches != patches * pool**2:
        raise ValueError(f"{encoder.num_patches} patches of the encoder cannot be pooled to {patches}")
    directions = np.random.default_rng(seed).integers(4, size=len(rows))
    encoded = {n: np.empty((len(rows), patches, encoder.dim), np.float16) for n in (0, *SHIFTS)}
    for view in np.unique(cameras):
        of_view = np.flatnonzero(cameras == view)
        images = store.gather(views[view], episodes[of_view], frames[of_view])
        for pixels, values in encoded.items():
            ways = zip(images, directions[of_view], strict=True)
            moved = [shifted(image, pixels, int(way)) for image, way in ways]
            values[of_view] = pooled(_encode(encoder, moved), encoder.grid, pool)
    pairs = {pixels: np.stack([encoded[0], values], axis=1) for pixels, values in encoded.items()}
    return ShiftedFrames(rows, pairs, store.info.views[views[cameras[0]]])


def shift_numbers(
    model: LatentActionModel, real: Said, frames: ShiftedFrames, episodes: Int[np.ndarray, " n"], seed: int = 0
) -> dict[str, Number]:
    """How far a shift moves the encoding away from that of no motion, relative to how far real transitions lie from it.

    Args:
        model: whose encodings these are.
        real: what it says of the sample.
        frames: whose rows are of the sample.
        episodes: of the sample.
        seed: of the intervals.
    """
    still = say_of(model, frames.pairs[0])
    reach = np.square(real.encodings[frames.rows] - still.encodings).sum(axis=(1, 2))
    found = {}
    for pixels in SHIFTS:
        moved = say_of(model, frames.pairs[pixels])
        distance = np.square(moved.encodings - still.encodings).sum(axis=(1, 2))
        null = Null("real transitions", 1.0)
        found[str(pixels)] = ratio_number(distance, np.maximum(reach, 1e-12), episodes[frames.rows], null, seed)
        changed = (moved.codes != still.codes).mean(axis=1)
        real_changed = float((real.codes[frames.rows] != still.codes).mean())
        found[f"codes {pixels}"] = mean_number(
            changed, episodes[frames.rows], Null("real transitions", real_changed), seed
        )
    return found


def zero_motion_table(rows: dict[str, dict[str, Number]]) -> Table:
    """The table of all models."""
    return Table(
        "zero_motion",
        "No motion: the same frame twice",
        "A latent action that is motion alone says the same of every such pair: entropy 0, all with the commonest "
        "code, spread 0. Beside it what real transitions give. Spread: mean squared distance of these encodings from "
        "their mean, relative to that of real transitions; 1 would be an encoding of the scene alone.",
        {"entropy": "H(Z), bits", "commonest": "share with the commonest code", "spread": "spread of the encoding"},
        rows,
    )


def shift_table(rows: dict[str, dict[str, Number]], frames: ShiftedFrames) -> Table:
    """The table of all models."""
    height, width = frames.size
    columns = {str(pixels): f"distance, {pixels} px" for pixels in SHIFTS}
    columns |= {f"codes {pixels}": f"codes changed, {pixels} px" for pixels in SHIFTS}
    return Table(
        "pixel_shift",
        "A shifted picture: the later frame is the first, moved by pixels",
        f"How far the encoding moves away from that of no motion (mean squared distance), relative to real transitions "
        f"of the same {len(frames.rows)} frames of {width} x {height} pixels, and the share of tokens whose code "
        "changes; each frame is moved right, left, down or up.",
        columns,
        rows,
    )


@torch.inference_mode()
def _encode(encoder: VisualEncoder, images: list[np.ndarray]) -> np.ndarray:
    parts = []
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.stack(images[start : start + BATCH])).to(encoder.device)
        parts.append(encoder(batch).half().cpu().numpy())
    return np.concatenate(parts)
