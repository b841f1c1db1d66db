"""Frozen visual towers by name: images in, patch tokens out."""

import re
from typing import Literal, NamedTuple

import timm
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch.nn import functional

from core.config import Config
from core.device import bf16_is_fast, default_device
from core.run import fingerprint_of
from core.weights import DEFAULT_TOWER, find_weights


class EncoderConfig(Config):
    """Which visual tower, and how images enter it."""

    name: str = DEFAULT_TOWER
    """Any vision transformer of timm, with its tag; pixels_patch14 for the pixels of 14 x 14 patches themselves."""
    image_size: int = 112
    """Images are resized to this many pixels a side (aspect ratio is not kept); a multiple of the patch size."""
    weights: str = "auto"
    """auto (what is on this machine, else hub, else package), hub, package, random (tests), or the path of a file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the tower; auto is bfloat16 where the processor is faster with it."""


class Grid(NamedTuple):
    """How patch tokens lie in the image."""

    rows: int
    cols: int


class VisualEncoder(torch.nn.Module):  # type: ignore[misc]
    """Images of any size to tokens, row by row; never trained, always in evaluation mode."""

    def __init__(self, config: EncoderConfig, grid: Grid, dim: int, source: str, fingerprint: str) -> None:
        super().__init__()
        self.image_size, self.grid, self.num_patches, self.dim = config.image_size, grid, grid.rows * grid.cols, dim
        self.source, self.fingerprint = source, fingerprint

    @property
    def device(self) -> torch.device:
        """Where images have to be."""
        return self.mean_and_std.device

    def _standardise(self, statistics: dict) -> None:
        values = torch.tensor([statistics["mean"], statistics["std"]])
        self.register_buffer("mean_and_std", 255 * values, persistent=False)

    def train(self, mode: bool = True) -> "VisualEncoder":
        """Stay in evaluation mode, whatever the model around does."""
        return super().train(False)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def forward(self, images: UInt8[torch.Tensor, "n h w 3"]) -> Float[torch.Tensor, "n patches dim"]:
        """Tokens of the patches, row by row, in float32."""
        pixels = rearrange(images, "n h w c -> n c h w").float()
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        mean, std = rearrange(self.mean_and_std, "kind c -> kind c 1 1")
        return self.tokens((pixels - mean) / std)

    def tokens(self, pixels: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n patches dim"]:
        """Tokens of standardised images."""
        raise NotImplementedError


class Tower(VisualEncoder):
    """A frozen vision transformer: its patch tokens after the final norm, without class and register tokens."""

    def __init__(self, tower: torch.nn.Module, config: EncoderConfig, source: str, fingerprint: str) -> None:
        super().__init__(config, Grid(*tower.patch_embed.grid_size), tower.num_features, source, fingerprint)
        self.tower = tower.requires_grad_(False).eval()
        self._standardise(tower.pretrained_cfg)

    def tokens(self, pixels: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n patches dim"]:
        """Patch tokens."""
        tokens = self.tower.forward_features(pixels.to(next(self.tower.parameters()).dtype))
        return tokens[:, self.tower.num_prefix_tokens :].float()


class PixelPatches(VisualEncoder):
    """No tower: the standardised pixels of each patch, for latent actions that explain pixels (as LAPA's)."""

    def __init__(self, patch: int, config: EncoderConfig, fingerprint: str) -> None:
        side = config.image_size // patch
        super().__init__(config, Grid(side, side), 3 * patch**2, "pixels", fingerprint)
        self._standardise({"mean": (0.5,) * 3, "std": (0.25,) * 3})

    def tokens(self, pixels: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n patches dim"]:
        """Pixels of the patches, channel by channel."""
        sides = {"rows": self.grid.rows, "cols": self.grid.cols}
        return rearrange(pixels, "n c (rows down) (cols across) -> n (rows cols) (c down across)", **sides)


def load_encoder(config: EncoderConfig, device: torch.device | str | None = None) -> VisualEncoder:
    """The tower of `config` with its pretrained weights on `device` (by default the GPU, where there is one).

    Raises:
        ValueError: timm has no such vision transformer, or the image size is no multiple of its patch size.
        WeightsError: the weights cannot be had.
    """
    device = default_device() if device is None else torch.device(device)
    if patch := _pixel_patch(config):
        return PixelPatches(patch, config, _fingerprint(config, "pixels")).to(device)
    weights = find_weights(config.name, config.weights)
    source = {"pretrained": False} if weights.path is None else _from_file(str(weights.path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = _create(config, source)
    use_bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and bf16_is_fast(device))
    encoder = Tower(tower, config, weights.source, _fingerprint(config, weights.fingerprint)).to(device)
    encoder.tower.to(torch.bfloat16 if use_bf16 else torch.float32)
    return encoder


def encoder_fingerprint(config: EncoderConfig) -> str:
    """The `fingerprint` that `load_encoder(config)` would have, without building the tower.

    It identifies weights, architecture and image size. Precision is left out: features of one tower are meant to be
    exchanged between machines, and differ by rounding only.
    """
    if _pixel_patch(config):
        return _fingerprint(config, "pixels")
    return _fingerprint(config, find_weights(config.name, config.weights).fingerprint)


def _fingerprint(config: EncoderConfig, weights_fingerprint: str) -> str:
    return fingerprint_of({"name": config.name, "image_size": config.image_size, "weights": weights_fingerprint})


def _pixel_patch(config: EncoderConfig) -> int:
    """Pixels a side of a patch where the pixels themselves are wanted, else 0."""
    named = re.fullmatch(r"pixels_patch(\d+)", config.name)
    if named and (not int(named[1]) or config.image_size % int(named[1])):
        raise ValueError(f"encoder.image_size is {config.image_size}; it must be a multiple of {named[1]}")
    return int(named[1]) if named else 0


def _from_file(path: str) -> dict:
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": path, "custom_load": False}}


def _create(config: EncoderConfig, source: dict) -> torch.nn.Module:
    if not timm.is_model(config.name):
        raise ValueError(f"encoder.name is {config.name!r}; timm knows no such model, see timm.list_models('vit*')")
    try:
        tower = timm.create_model(config.name, num_classes=0, img_size=config.image_size, **source)
    except TypeError:
        raise ValueError(
            f"encoder.name is {config.name!r}, which takes no image size; use a vision transformer"
        ) from None
    patches = getattr(tower, "patch_embed", None)
    if patches is None or not hasattr(tower, "num_prefix_tokens"):
        raise ValueError(f"encoder.name is {config.name!r}, which has no patch tokens; use a vision transformer")
    if any(config.image_size % side for side in patches.patch_size):
        raise ValueError(f"encoder.image_size is {config.image_size}; it must be a multiple of {patches.patch_size[0]}")
    return tower
