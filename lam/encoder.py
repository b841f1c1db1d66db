"""The inverse dynamics side: two frames of patch features in, a few continuous action tokens out."""

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from lam.blocks import SpatioTemporalBlock, run_block, sinusoidal_positions


class LatentActionEncoder(nn.Module):
    """Learned queries ride along with the patches of both frames; those of the later frame are the encoding."""

    checkpoint_gradients = False
    """Whether blocks forget their activations and compute them again for the backward pass."""

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
        queries = repeat(self.embed(self.queries), "tokens width -> batch 2 tokens width", batch=len(features))
        tokens = torch.cat([queries, self.embed(features)], dim=2) + self.positions
        forget = self.checkpoint_gradients
        for block in self.blocks[:-1]:
            tokens = run_block(block, tokens, forget=forget)
        tokens = run_block(self.blocks[-1], tokens, len(self.queries), forget=forget)
        return self.to_code(tokens[:, 1])
