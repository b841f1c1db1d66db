"""The inverse dynamics side: two frames of patch features in, a few continuous action tokens out."""

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from lam.blocks import SpatioTemporalBlock, sinusoidal_positions


class LatentActionEncoder(nn.Module):
    """Learned queries ride along with the patches of both frames; those of the later frame are the encoding."""

    def __init__(
        self, feature_dim: int, patches: int, width: int, blocks: int, heads: int, num_tokens: int, code_dim: int
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_tokens, feature_dim).uniform_(-1, 1))
        self.embed = nn.Sequential(nn.LayerNorm(feature_dim), nn.Linear(feature_dim, width), nn.LayerNorm(width))
        self.register_buffer("positions", sinusoidal_positions(num_tokens + patches, width), persistent=False)
        self.blocks = nn.ModuleList(SpatioTemporalBlock(width, heads) for _ in range(blocks))
        self.to_code = nn.Linear(width, code_dim)

    def forward(self, features: Float[Tensor, "batch 2 patches dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """Action tokens of the transition from the first to the second frame."""
        batch, frames = features.shape[:2]
        queries = repeat(self.queries, "tokens dim -> batch frames tokens dim", batch=batch, frames=frames)
        tokens = self.embed(torch.cat([queries.to(features.dtype), features], dim=2)) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.to_code(tokens[:, 1, : len(self.queries)])
