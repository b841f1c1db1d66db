"""Clips, a transition as one camera saw it, of held-out episodes, and what the model says of each."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from core.device import default_device
from core.store import NoActionsError, Store
from lam.dataset import TransitionDataset, transition_actions
from lam.model import LatentActionModel

BATCH = 64
STILL = 0.2
"""Actions shorter than this share of the 95th percentile count as little motion."""


class ShowError(ValueError):
    """A page that cannot be made."""


class Clips(NamedTuple):
    """Held-out transitions, each once a camera that saw it."""

    dataset: TransitionDataset
    transitions: Int[np.ndarray, " n"]
    """Number in the dataset."""
    cameras: Int[np.ndarray, " n"]
    """Position in the dataset's views."""
    episodes: Int[np.ndarray, " n"]
    frames: Int[np.ndarray, " n"]
    """Number of the first frame."""
    encodings: Float[np.ndarray, "n tokens dim"]
    """Before the bottleneck."""
    codes: Float[np.ndarray, "n tokens dim"]
    """Behind it: what the decoder gets."""
    indices: Int[np.ndarray, "n tokens"] | None
    """Code indices; None where the bottleneck is continuous."""
    change: Float[np.ndarray, " n"]
    """Mean squared difference between the features of the two frames."""

    @property
    def gap(self) -> int:
        """Frames between the two of a clip."""
        return self.dataset.gaps[0]

    def features(self, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 2 patches dim"]:
        """Features of both frames of some clips."""
        return self.dataset.seen_by(self.transitions[rows], self.cameras[rows])


def take_clips(model: LatentActionModel, dataset: TransitionDataset, most: int, seed: int) -> Clips:
    """At most `most` transitions, drawn by `seed`, through the model."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:most])
    pairs = [(index, camera) for index in chosen for camera in dataset.available(int(index))]
    transitions, cameras = (np.array(column) for column in zip(*pairs, strict=True))
    episodes, frames = dataset.locate(transitions)
    nothing = np.zeros((0, 0, 0), np.float32)
    clips = Clips(dataset, transitions, cameras, episodes, frames, nothing, nothing, None, np.zeros(0))
    device = default_device()
    parts = []
    with tqdm(total=len(pairs), desc="show_latents: encode", unit="clip", mininterval=1.0) as bar:
        for start in range(0, len(pairs), BATCH):
            rows = np.arange(start, min(start + BATCH, len(pairs)))
            parts.append(_through(model.to(device), torch.from_numpy(clips.features(rows)).to(device).float()))
            bar.update(len(rows))
    encodings, codes, indices, change = zip(*parts, strict=True)
    return clips._replace(
        encodings=np.concatenate(encodings),
        codes=np.concatenate(codes),
        indices=None if indices[0] is None else np.concatenate(indices),
        change=np.concatenate(change),
    )


@torch.inference_mode()
def _through(model: LatentActionModel, features: Float[torch.Tensor, "n 2 patches dim"]) -> tuple:
    encodings = model.encode(features)
    quantized = model.quantize(encodings)
    indices = None if quantized.indices is None else quantized.indices.cpu().numpy()
    change = (features[:, 1] - features[:, 0]).square().flatten(1).mean(1)
    return encodings.cpu().numpy(), quantized.codes.float().cpu().numpy(), indices, change.cpu().numpy()


class Motion(NamedTuple):
    """Where the robot was told to go during each clip."""

    xy: Float[np.ndarray, "n 2"]
    """Sum of the commanded x and y."""
    is_moving: np.ndarray
    """Whether that is more than little motion."""
    unit: str


def motion_of(store: Store, clips: Clips) -> Motion | str:
    """The motion of each clip; a sentence where the store does not tell. Reads hidden actions: for measuring only."""
    space = store.info.action_space
    if space is None:
        return "these episodes have no actions"
    names = list(space.names)
    if not {"x", "y"} <= set(names) or not space.is_increment[[names.index("x"), names.index("y")]].all():
        return f"the actions ({space.kind}: {', '.join(names)}) are no increments of x and y"
    unique, back = np.unique(clips.transitions, return_inverse=True)
    try:
        actions = transition_actions(store, *clips.dataset.locate(unique), clips.gap)
    except NoActionsError as error:
        return str(error)
    xy = actions[back][:, [names.index("x"), names.index("y")]].astype(float)
    length = np.linalg.norm(xy, axis=1)
    return Motion(xy, length > STILL * np.percentile(length, 95), space.units[names.index("x")])
