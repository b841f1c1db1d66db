"""The latent action of one scene, decoded in another: does the other scene move, and like the first?"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from lam.dataset import pooled
from lam.model import LatentActionModel
from lam.show.nearest import mean_squared_distances
from lam.show.sample import Clips

PAIRS_PER_CAMERA = 100


class Transplant(NamedTuple):
    """A donor's latent action on the receiver's first frame."""

    donor: int
    """Row of the clips; so is the receiver."""
    receiver: int
    nearest: tuple[int, int]
    """Episode and frame most like the decoded result, the receiver's first frame and the donor's episode aside."""
    distance: float
    """Mean squared difference of that frame's features from the decoded ones."""
    own_distance: float
    """Likewise of the receiver's first frame."""
    donor_distance: float
    """Likewise of the donor's later frame."""
    donor_change: float
    """Mean squared difference between the features of the donor's two frames."""
    is_control_moved: bool
    """With the receiver's own latent action the result is nearer to its own later frame than to its first."""

    @property
    def is_moved(self) -> bool:
        """Whether another frame is more like the result than the one it started from."""
        return self.distance < self.own_distance

    @property
    def is_copy(self) -> bool:
        """Whether the donor's later frame is more like the result than both: where it ended, not how it moved."""
        return self.donor_distance < min(self.distance, self.own_distance)


class Gallery(NamedTuple):
    """Real frames of one camera."""

    episodes: Int[np.ndarray, " frames"]
    frames: Int[np.ndarray, " frames"]
    features: Float[np.ndarray, "frames patches dim"]


def transplants(model: LatentActionModel, clips: Clips, most_frames: int, seed: int) -> tuple[list[Transplant], int]:
    """Up to 100 transplants a camera in seeded order, and how many frames were searched for the nearest.

    Donor and receiver are seen by one camera and are clips that change as much as its median one or more, else the
    control would say nothing; no receiver's episode serves twice.
    """
    rng = np.random.default_rng(seed)
    found, searched = [], 0
    cameras = np.unique(clips.cameras)
    for camera in tqdm(cameras, desc="show_latents: transplant", unit="camera", mininterval=1.0):
        pairs = draw_pairs(clips, int(camera), rng)
        if len(pairs):
            gallery = gallery_of(clips, int(camera), most_frames, clips.episodes[pairs[:, 1]])
            found += of_pairs(model, clips, pairs, gallery)
            searched += len(gallery.frames)
    return [found[row] for row in rng.permutation(len(found))], searched


def draw_pairs(clips: Clips, camera: int, rng: np.random.Generator) -> Int[np.ndarray, "pairs 2"]:
    """Rows (donor, receiver) of different episodes."""
    rows = rng.permutation(np.flatnonzero(clips.cameras == camera))
    donors = rows[clips.change[rows] >= np.median(clips.change[rows])]
    receivers = donors[np.unique(clips.episodes[donors], return_index=True)[1]]
    pairs = []
    for receiver in rng.permutation(receivers)[:PAIRS_PER_CAMERA]:
        others = donors[clips.episodes[donors] != clips.episodes[receiver]]
        if len(others):
            pairs.append((rng.choice(others), receiver))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def gallery_of(clips: Clips, camera: int, most_frames: int, needed: Int[np.ndarray, " episodes"]) -> Gallery:
    """Frames of whole held-out episodes, the `needed` ones first, about `most_frames` of them."""
    data = clips.dataset
    others = np.setdiff1d(clips.episodes[clips.cameras == camera], needed)
    where: list[tuple[int, int]] = []
    for episode in [*needed, *others]:
        if len(where) >= most_frames:
            break
        where += [(int(episode), frame) for frame in range(data.store.episodes[episode].length)]
    episodes, frames = np.array(where).T
    features = data.source.features(data.views[camera], episodes, frames)
    return Gallery(episodes, frames, pooled(features, data.source.grid, data.options.pool))


@torch.inference_mode()
def of_pairs(
    model: LatentActionModel, clips: Clips, pairs: Int[np.ndarray, "pairs 2"], gallery: Gallery
) -> list[Transplant]:
    """What each pair's decoded result is most like."""
    donors, receivers = pairs.T
    features = clips.features(receivers).astype(np.float32)
    decoded = _decode(model, features[:, 0], clips.codes[donors])
    control = _decode(model, features[:, 0], clips.codes[receivers])
    distances = mean_squared_distances(decoded, gallery.features)
    is_own = (gallery.episodes == clips.episodes[receivers, None]) & (gallery.frames == clips.frames[receivers, None])
    is_donors = gallery.episodes == clips.episodes[donors, None]
    best = np.where(is_own | is_donors, np.inf, distances).argmin(1)
    own = np.square(decoded - features[:, 0]).mean((1, 2))
    donors_later = np.square(decoded - clips.features(donors)[:, 1].astype(np.float32)).mean((1, 2))
    to_first, to_later = (np.square(control - features[:, instant]).mean((1, 2)) for instant in (0, 1))
    return [
        Transplant(
            int(donor),
            int(receiver),
            (int(gallery.episodes[at]), int(gallery.frames[at])),
            float(distances[row, at]),
            float(own[row]),
            float(donors_later[row]),
            float(clips.change[donor]),
            bool(to_later[row] < to_first[row]),
        )
        for row, ((donor, receiver), at) in enumerate(zip(pairs, best, strict=True))
    ]


def _decode(
    model: LatentActionModel, first: Float[np.ndarray, "n patches dim"], codes: Float[np.ndarray, "n tokens code_dim"]
) -> Float[np.ndarray, "n patches dim"]:
    device = next(model.parameters()).device
    parts = [
        model.decode(torch.from_numpy(first[rows]).to(device), torch.from_numpy(codes[rows]).to(device)).cpu().numpy()
        for rows in np.array_split(np.arange(len(first)), -(-len(first) // 32))
    ]
    return np.concatenate(parts)
