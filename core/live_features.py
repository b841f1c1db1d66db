"""Features of frames as they are asked for, augmented where wanted: no cache on disk, the encoder at every step."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torchvision.transforms.v2 import functional

from core.config import Config
from core.frame_cache import FramesConfig, open_frames
from core.frames import BATCH
from core.read_ahead import frames_by, is_only_reading
from core.run import fingerprint_of
from core.store import Store
from core.vision import EncoderConfig, load_encoder


class AugmentationConfig(Config):
    """How a frame may differ from what was recorded; the two frames of a view always differ alike."""

    smallest_crop: float = Field(default=0.8, gt=0, le=1)
    """Least share of the image's area that a crop keeps; 1: no crops."""
    brightness: float = Field(default=0.2, ge=0, le=1)
    """Factors of brightness are drawn from 1 - this to 1 + this."""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """Likewise of contrast."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """Likewise of saturation."""


_shared_encoder = lru_cache(maxsize=1)(load_encoder)
"""One tower for all stores of a run."""


class LiveFeatures:
    """Features of a store's frames, computed when they are asked for."""

    def __init__(
        self,
        store: Store,
        encoder_config: EncoderConfig,
        augmentation: AugmentationConfig = AugmentationConfig(),
        frames: FramesConfig = FramesConfig(),
    ) -> None:
        self.encoder_config, self.augmentation = encoder_config, augmentation
        self.source = open_frames(store, frames)
        self.views = tuple(store.info.views)
        self.encoder = encoder = _shared_encoder(encoder_config)
        self.grid, self.dim = encoder.grid, encoder.dim
        self.encoder_fingerprint = encoder.fingerprint
        kept = frames.model_dump(mode="json", include={"tier", "size"})
        self.fingerprint = fingerprint_of(["live", encoder.fingerprint, kept])

    def features(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n patches dim"]:
        """Features, float16, of the frames `(episodes[i], frames[i])` as they were recorded."""
        return self._encoded(frames_by(lambda: self.source.gather(view, episodes, frames)))

    def augmented(
        self,
        view: str,
        episodes: Int[np.ndarray, " n"],
        frames: Int[np.ndarray, " n"],
        seeds: Int[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n patches dim"]:
        """Features after the augmentation that each frame's seed decides: equal seeds, equal augmentation."""

        def changed() -> UInt8[np.ndarray, "n h w 3"]:
            images = self.source.gather(view, episodes, frames)
            pairs = zip(images, seeds, strict=True)
            return np.stack([augment(image, self.augmentation, int(seed)) for image, seed in pairs])

        return self._encoded(frames_by(changed))

    def _encoded(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n patches dim"]:
        if is_only_reading():
            return np.zeros((len(images), self.encoder.num_patches, self.dim), np.float16)
        device = self.encoder.device
        parts = [
            self.encoder(part.to(device)).half().cpu() for part in torch.from_numpy(images).split(BATCH[device.type])
        ]
        return torch.cat(parts).numpy()


def augment(image: UInt8[np.ndarray, "h w 3"], config: AugmentationConfig, seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image after a crop, resized back, and changes of colour, all decided by the seed."""
    draws = np.random.default_rng(seed)
    height, width = image.shape[:2]
    side = np.sqrt(draws.uniform(config.smallest_crop, 1.0))
    crop = (round(side * height), round(side * width))
    top, left = (
        int(draws.integers(0, whole - part, endpoint=True)) for whole, part in zip(image.shape, crop, strict=False)
    )
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    pixels = functional.resized_crop(pixels, top, left, *crop, size=[height, width], antialias=True)
    for adjust, reach in (
        (functional.adjust_brightness, config.brightness),
        (functional.adjust_contrast, config.contrast),
        (functional.adjust_saturation, config.saturation),
    ):
        pixels = adjust(pixels, float(draws.uniform(1 - reach, 1 + reach)))
    return pixels.permute(1, 2, 0).contiguous().numpy()
