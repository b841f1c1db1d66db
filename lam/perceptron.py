"""Encoder and decoder as perceptrons over all patches at once: what a few minutes on one core can train.

Attention needs tens of thousands of steps to find a small hand in a grid of patches; a dense layer over the whole grid,
shown the change of every patch, needs hundreds (docs/experiments.md).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class PerceptronEncoder(nn.Module):
    """What every patch shows first and how it changed, through two hidden layers, to the action tokens."""

    def __init__(
        self, feature_dim: int, patches: int, patch_width: int, width: int, num_tokens: int, code_dim: int
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = nn.LayerNorm(feature_dim)
        self.reduce_first = nn.Linear(feature_dim, patch_width)
        self.reduce_change = nn.Linear(feature_dim, patch_width)
        self.net = nn.Sequential(
            nn.Linear(2 * patches * patch_width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, num_tokens * code_dim),
        )

    def forward(self, features: Float[Tensor, "batch 2 patches dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """Action tokens of the transition from the first to the second frame."""
        first, later = self.norm(features).unbind(1)
        reduced = torch.cat([F.gelu(self.reduce_first(first)), self.reduce_change(later - first)], dim=-1)
        tokens = self.net(rearrange(reduced, "batch patches dim -> batch (patches dim)"))
        return rearrange(tokens, "batch (tokens dim) -> batch tokens dim", tokens=self.num_tokens)


class PerceptronDecoder(nn.Module):
    """The first frame and action tokens of any view to the later frame; knows neither view nor camera pose."""

    def __init__(
        self, feature_dim: int, patches: int, patch_width: int, width: int, num_tokens: int, code_dim: int
    ) -> None:
        super().__init__()
        self.patches = patches
        kept = patch_width * 2 // 3
        self.reduce = nn.Sequential(nn.LayerNorm(feature_dim), nn.Linear(feature_dim, kept), nn.GELU())
        self.from_patches = nn.Linear(patches * kept, width)
        self.from_action = nn.Linear(num_tokens * code_dim, width)
        self.net = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, patches * 4 * kept))
        self.out = nn.Linear(4 * kept, feature_dim)

    def forward(
        self, features: Float[Tensor, "batch patches dim"], action: Float[Tensor, "batch tokens code_dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Features of the later frame."""
        scene = self.from_patches(rearrange(self.reduce(features), "batch patches dim -> batch (patches dim)"))
        hidden = self.net(scene + self.from_action(rearrange(action, "batch tokens dim -> batch (tokens dim)")))
        return self.out(rearrange(hidden, "batch (patches dim) -> batch patches dim", patches=self.patches))
