"""Visual towers of timm as parts of a backbone: frames in, patch tokens out; they can be trained."""

import timm
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional


class Towers(nn.Module):
    """Patch tokens of several towers, side by side on channels; they need equal patch grids."""

    def __init__(self, towers: list[nn.Module], second_to_last: bool = False) -> None:
        """Of vision transformers: their output, or that of their last block but one, without what comes after it."""
        super().__init__()
        self.towers, self.second_to_last = nn.ModuleList(towers), second_to_last
        for tower in towers if second_to_last else []:
            tower.prune_intermediate_layers([len(tower.blocks) - 2], prune_norm=True, prune_head=True)
        self.grid: tuple[int, int] = tuple(towers[0].patch_embed.grid_size)
        self.width = sum(tower.num_features for tower in towers)
        grids = [tuple(tower.patch_embed.grid_size) for tower in towers]
        if len(set(grids)) > 1:
            raise ValueError(f"the towers have the patch grids {grids}; give them image sizes that make these equal")
        for place, tower in enumerate(towers):
            values = torch.tensor([tower.pretrained_cfg["mean"], tower.pretrained_cfg["std"]])
            self.register_buffer(f"mean_and_std_{place}", 255 * values, persistent=False)

    def forward(self, frames: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n patches dim"]:
        """Tokens, row by row."""
        pixels = rearrange(frames, "n h w c -> n c h w").float()
        return torch.cat(
            [self._tokens(place, self.standardised(place, pixels)) for place in range(len(self.towers))], -1
        )

    def standardised(self, place: int, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h2 w2"]:
        """What the tower there takes of pixels from 0 to 255."""
        size = tuple(self.towers[place].patch_embed.img_size)
        if tuple(pixels.shape[-2:]) != size:
            how = self.towers[place].pretrained_cfg.get("interpolation", "bilinear")
            how = how if how in ("bilinear", "bicubic") else "bilinear"
            pixels = functional.interpolate(pixels, size, mode=how, antialias=True).clamp(0, 255)
        mean, std = rearrange(getattr(self, f"mean_and_std_{place}"), "kind c -> kind c 1 1")
        return (pixels - mean) / std

    def of_pixels(self, pixels: list[Float[Tensor, "n 3 h w"]]) -> Float[Tensor, "n patches dim"]:
        """Tokens of pixels that are standardised already, for each tower its own."""
        return torch.cat([self._tokens(place, own) for place, own in enumerate(pixels)], -1)

    def _tokens(self, place: int, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n patches own"]:
        # After `second_to_last` the norm is none, and the last block the one that is wanted.
        tower = self.towers[place]
        return tower.forward_features(pixels)[:, tower.num_prefix_tokens :]


def create_tower(name: str, image_size: int, file: str | None = None, **sizes: object) -> nn.Module:
    """A vision transformer of timm without weights, or with those of a file."""
    source = {"pretrained_cfg_overlay": {"file": file, "custom_load": False}, "pretrained": True} if file else {}
    return timm.create_model(name, num_classes=0, img_size=image_size, **source, **sizes)
