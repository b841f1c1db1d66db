"""The forward dynamics side: a frame's patch features and an action in, the later frame's features out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lam.blocks import SpatialBlock, run_block, sinusoidal_positions


class FeatureDecoder(nn.Module):
    """Sees one view's first frame and action tokens from any view; knows neither view nor camera pose."""

    checkpoint_gradients = False
    """Whether blocks forget their activations and compute them again for the backward pass."""

    def __init__(
        self, feature_dim: int, patches: int, width: int, blocks: int, heads: int, num_tokens: int, code_dim: int
    ) -> None:
        super().__init__()
        self.action_up = nn.Linear(code_dim, width)
        self.patch_up = nn.Linear(feature_dim, width)
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.LayerNorm(width))
        self.register_buffer("positions", sinusoidal_positions(num_tokens + patches, width), persistent=False)
        self.blocks = nn.ModuleList(SpatialBlock(width, heads) for _ in range(blocks))
        self.out = nn.Linear(width, feature_dim)

    def forward(
        self, features: Float[Tensor, "batch patches dim"], action: Float[Tensor, "batch tokens code_dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Features of the later frame."""
        tokens = self.embed(torch.cat([self.action_up(action), self.patch_up(features)], dim=1)) + self.positions
        tokens = tokens[:, None]
        for block in self.blocks:
            tokens = run_block(block, tokens, forget=self.checkpoint_gradients)
        return self.out(tokens[:, 0, action.shape[1] :])
