"""What a backbone is shown of the cameras, in training and in acting alike: frames, or features of a frozen tower."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from torch.nn import functional

from core.checkpoint import CheckpointError
from core.config import Config
from core.frame_cache import FramesConfig, open_frames
from core.frames import FeatureCache, FeaturesError
from core.reduction import pooled
from core.store import Store
from core.vision import EncoderConfig, load_encoder

SAME_SHAPE = 0.02
"""By so much the ratio of height to width may be another."""


class ImageError(ValueError):
    """Images of another size, type or order of channels than a backbone takes."""


class ImageForm(Config):
    """How images enter a backbone."""

    size: tuple[int, int] | None = None
    """(height, width) of the frames, to which others are resized; None: features are shown, or nothing is known yet."""
    encoder: EncoderConfig | None = None
    """Frozen tower whose patch features are shown instead of frames."""
    encoder_fingerprint: str = ""
    """Its weights."""
    pool: int = 1
    """Patches averaged along each side."""
    feature_dim: int = 0
    """Channels of a patch."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of patches."""


@runtime_checkable
class ImageSource(Protocol):
    """Images of a store at random."""

    form: ImageForm

    def __call__(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Shaped[np.ndarray, "n *image"]:
        """Those of a camera."""


class CachedFeatures:
    """Patch features from a cache."""

    def __init__(self, cache: FeatureCache) -> None:
        """Of a cache.

        Raises:
            FeaturesError: its features were projected, which cannot be done for what a policy sees.
        """
        if cache.components:
            raise FeaturesError(
                f"{cache.directory} holds principal components, which a policy cannot compute; cache features with "
                "components: 0"
            )
        self.cache = cache
        self.form = ImageForm(
            encoder=cache.encoder_config,
            encoder_fingerprint=cache.encoder_fingerprint,
            pool=cache.pool,
            feature_dim=cache.dim,
            grid=tuple(cache.grid),
        )

    def __call__(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Shaped[np.ndarray, "n *image"]:
        """(n, patches, channels), float16."""
        return self.cache.features(view, episodes, frames)


class Frames:
    """Frames, from the store's video or a cache of them."""

    def __init__(self, store: Store, config: FramesConfig, size: tuple[int, int]) -> None:
        self.source, self.form = open_frames(store, config), ImageForm(size=size)

    def __call__(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Shaped[np.ndarray, "n *image"]:
        """(n, height, width, 3), uint8."""
        return resized(self.source.gather(view, episodes, frames), self.form.size)


def open_images(
    store: Store,
    features: str,
    frames: FramesConfig,
    views: Sequence[str],
    *,
    reads_features: bool,
    size: tuple[int, int] | None = None,
    form: ImageForm | None = None,
) -> CachedFeatures | Frames:
    """Where a training's images come from.

    Args:
        store: the episodes.
        features: directory of a feature cache of the store.
        frames: how frames are read, where no features are.
        views: cameras that are needed.
        reads_features: whether the backbone takes features.
        size: (height, width) that frames are resized to.
        form: what a pretrained backbone was shown, which this must be too.

    Raises:
        FeaturesError: features are missing, of another store or tower, or given to a backbone that takes frames.
        ImageError: cameras have different sizes.
    """
    if not reads_features:
        if features:
            raise FeaturesError("features is set, but this backbone reads frames; leave it empty")
        sizes = {view: tuple(store.info.views[view]) for view in views}
        size = size or (form.size if form else None)
        if size is None and len(set(sizes.values())) > 1:
            raise ImageError(f"the cameras have the sizes {sizes}; set image_size, so that they are seen alike")
        return Frames(store, frames, size or next(iter(sizes.values())))
    if not features:
        raise FeaturesError("this backbone reads features: set features to a cache made by scripts/cache_features.py")
    wanted = form.encoder_fingerprint if form else None
    cache = FeatureCache.open(features, store_fingerprint=store.fingerprint, encoder_fingerprint=wanted)
    for view in views:
        cache.require_view(view)
    found = CachedFeatures(cache)
    if form and (found.form.pool, found.form.grid) != (form.pool, form.grid):
        raise FeaturesError(
            f"the model was shown features with pool {form.pool} (a grid of {form.grid}), {features} has pool "
            f"{found.form.pool} ({found.form.grid}); cache them alike"
        )
    return found


class Eye:
    """Images of an observation as `ImageSource` gives those of a store."""

    def __init__(
        self, form: ImageForm, device: torch.device, camera_sizes: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        """Load the frozen tower, where there is one; images of cameras with known sizes have to be of that shape.

        Raises:
            CheckpointError: the tower of this machine has other weights.
        """
        self.form, self.camera_sizes = form, camera_sizes or {}
        self.encoder = load_encoder(form.encoder, device) if form.encoder else None
        if self.encoder is not None and self.encoder.fingerprint != form.encoder_fingerprint:
            raise CheckpointError(
                f"the policy was trained on visual tower {form.encoder_fingerprint}, those found here make "
                f"{self.encoder.fingerprint}; run scripts/setup.sh to fetch the right ones"
            )

    def __call__(
        self, observed: Sequence[Mapping[str, UInt8[np.ndarray, "_ _ 3"]]], views: Sequence[str]
    ) -> Shaped[np.ndarray, "samples views ..."]:
        """Those of several observations, the tower seeing all of them at once.

        Raises:
            KeyError: a camera is missing.
            ImageError: what it shows is no RGB image, or of another shape than in training.
        """
        for images in observed:
            if missing := [view for view in views if view not in images]:
                raise KeyError(f"the policy sees the cameras {list(views)}; the observation lacks {missing}")
            for view in views:
                check_image(view, images[view], self.camera_sizes.get(view))
        seen = self._seen([images[view] for images in observed for view in views])
        return seen.reshape(len(observed), len(views), *seen.shape[1:])

    def _seen(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Shaped[np.ndarray, "n ..."]:
        if self.encoder is None:
            return np.concatenate([resized(image[None], self.form.size) for image in images])
        if len({image.shape for image in images}) > 1:
            return np.concatenate([self._seen([image]) for image in images])
        features = self.encoder(torch.from_numpy(np.stack(images)).to(self.encoder.device))
        return pooled(features, self.encoder.grid, self.form.pool).half().cpu().numpy()


def check_image(view: str, image: np.ndarray, trained_on: tuple[int, int] | None) -> None:
    """Refuse what is no RGB image, or would be squeezed into the form of the images that a policy was trained on.

    Raises:
        ImageError: another type, order of channels, or ratio of height to width.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        first = image.ndim == 3 and image.shape[0] == 3
        hint = "; the channels come first, move them to the end" if first else ""
        hint += "; scale it to 0..255 and make it uint8" if image.dtype != np.uint8 else ""
        raise ImageError(
            f"camera {view!r} shows {image.dtype} {image.shape}, not RGB in uint8 of (height, width, 3){hint}"
        )
    if trained_on is None:
        return
    (height, width), (own_height, own_width) = image.shape[:2], trained_on
    if abs(height * own_width - width * own_height) > SAME_SHAPE * height * own_width:
        raise ImageError(
            f"camera {view!r} shows {height} x {width} pixels (height x width), the policy was trained on "
            f"{own_height} x {own_width}; crop or pad to that shape"
        )


def resized(images: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "n h2 w2 3"]:
    """Images of that (height, width)."""
    if size is None or images.shape[1:3] == tuple(size):
        return images
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    pixels = functional.interpolate(pixels, tuple(size), mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
