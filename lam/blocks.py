"""Pre-norm attention blocks over (frame, slot) grids of tokens, as in the published model."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention; query, key and value without bias."""

    def __init__(self, width: int, heads: int, is_causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.is_causal = heads, is_causal
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "batch slots width"]) -> Float[Tensor, "batch slots width"]:
        """Each slot attends to all slots, or to itself and those before it."""
        split = "batch slots (heads width) -> batch heads slots width"
        q, k, v = (rearrange(m(tokens), split, heads=self.heads) for m in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out(rearrange(attended, "batch heads slots width -> batch slots (heads width)"))


class SpatialBlock(nn.Module):
    """Attention among the slots of one frame, then a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.spatial_norm = nn.LayerNorm(width)
        self.spatial = Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "batch frames slots width"]) -> Float[Tensor, "batch frames slots width"]:
        """Frames do not see each other."""
        frames = tokens.shape[1]
        tokens = rearrange(tokens, "batch frames slots width -> (batch frames) slots width")
        tokens = tokens + self.spatial(self.spatial_norm(tokens))
        tokens = tokens + self.feed_forward(self.feed_forward_norm(tokens))
        return rearrange(tokens, "(batch frames) slots width -> batch frames slots width", frames=frames)


class SpatioTemporalBlock(SpatialBlock):
    """Attention among the slots of one frame, then causally among the frames of one slot, then feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal = Attention(width, heads, is_causal=True)

    def forward(self, tokens: Float[Tensor, "batch frames slots width"]) -> Float[Tensor, "batch frames slots width"]:
        """Later frames see earlier ones, never the reverse."""
        batch, _, slots, _ = tokens.shape
        tokens = rearrange(tokens, "batch frames slots width -> (batch frames) slots width")
        tokens = tokens + self.spatial(self.spatial_norm(tokens))
        tokens = rearrange(tokens, "(batch frames) slots width -> (batch slots) frames width", batch=batch)
        tokens = tokens + self.temporal(self.temporal_norm(tokens))
        tokens = rearrange(tokens, "(batch slots) frames width -> batch frames slots width", slots=slots)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


def sinusoidal_positions(slots: int, width: int) -> Float[Tensor, "slots width"]:
    """Sines at even, cosines at odd channels (Vaswani et al. 2017)."""
    positions = torch.arange(slots)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(slots, width)
    table[:, 0::2] = torch.sin(positions * rates)
    table[:, 1::2] = torch.cos(positions * rates)
    return table
