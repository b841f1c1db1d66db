"""Pre-norm attention blocks over (frame, slot) grids of tokens: the published numbers from less work."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Norm(nn.LayerNorm):
    """LayerNorm in float32 that answers in autocast's precision: else each product behind it would cast anew."""

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The normalised tokens."""
        kind = tokens.device.type
        normed = super().forward(tokens)
        return normed.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else normed


class Attention(nn.Module):
    """The parameters of multi-head attention; query, key and value without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)


class SpatialAttention(Attention):
    """Attention among the slots of one frame."""

    def forward(
        self, tokens: Float[Tensor, "batch frames slots width"], kept: int | None = None
    ) -> Float[Tensor, "batch frames kept width"]:
        """What the first `kept` slots (all by default) get from all slots of their frame."""
        split = "batch frames slots (heads width) -> (batch frames) heads slots width"
        projected = self.query(tokens[:, :, :kept]), self.key(tokens), self.value(tokens)
        attended = attend(*(rearrange(x, split, heads=self.heads) for x in projected))
        merge = "(batch frames) heads slots width -> batch frames slots (heads width)"
        return self.out(rearrange(attended, merge, frames=tokens.shape[1]))


class TemporalAttention(Attention):
    """Causal attention between the two frames of each slot."""

    def forward(self, tokens: Float[Tensor, "batch 2 slots width"]) -> Float[Tensor, "batch 2 slots width"]:
        """The first frame sees itself alone, which is its value; the later one weighs both."""
        split = "... (heads width) -> ... heads width"
        first, later = tokens.unbind(1)
        query = rearrange(self.query(later), split, heads=self.heads)
        change = rearrange(self.key(later - first), split, heads=self.heads)
        # The softmax of two scores is the logistic function of their difference.
        weight = torch.sigmoid((query * change).sum(-1, keepdim=True) / math.sqrt(query.shape[-1]))
        before, now = rearrange(self.value(tokens), split, heads=self.heads).unbind(1)
        attended = torch.stack([before, before + weight * (now - before)], dim=1)
        return self.out(rearrange(attended, "... heads width -> ... (heads width)"))


def attend(
    query: Float[Tensor, "batch heads asking width"],
    key: Float[Tensor, "batch heads slots width"],
    value: Float[Tensor, "batch heads slots width"],
) -> Float[Tensor, "batch heads asking width"]:
    """Softmax attention by the fastest means (docs/performance.md): on a CPU plain products, not the fused kernel."""
    if query.device.type != "cpu" and len(query):
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value


def run_block(block: nn.Module, *arguments: Any, forget: bool) -> Any:
    """`block(*arguments)`; with `forget`, its activations are computed again for the backward pass, to save memory."""
    if forget:
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return block(*arguments)


class SpatialBlock(nn.Module):
    """Attention among the slots of one frame, then a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.spatial_norm = Norm(width)
        self.spatial = SpatialAttention(width, heads)
        self.feed_forward_norm = Norm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "batch frames slots width"]) -> Float[Tensor, "batch frames slots width"]:
        """Frames do not see each other."""
        tokens = tokens + self.spatial(self.spatial_norm(tokens))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class SpatioTemporalBlock(SpatialBlock):
    """Attention among the slots of one frame, then causally between the frames of one slot, then feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.temporal_norm = Norm(width)
        self.temporal = TemporalAttention(width, heads)

    def forward(
        self, tokens: Float[Tensor, "batch 2 slots width"], kept: int | None = None
    ) -> Float[Tensor, "batch 2 kept width"]:
        """The first `kept` slots (all by default); the later frame sees the first, never the reverse."""
        tokens = tokens[:, :, :kept] + self.spatial(self.spatial_norm(tokens), kept)
        tokens = tokens + self.temporal(self.temporal_norm(tokens))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


def sinusoidal_positions(slots: int, width: int) -> Float[Tensor, "slots width"]:
    """Sines at even, cosines at odd channels (Vaswani et al. 2017)."""
    positions = torch.arange(slots)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(slots, width)
    table[:, 0::2] = torch.sin(positions * rates)
    table[:, 1::2] = torch.cos(positions * rates)
    return table
