"""`l1_pool`: the published head: two attention poolings, over image and then over latent tokens, and tanh.

MVP-LAM (arXiv 2602.03668), in the layout of its released weights. The published code trains it on the hidden states of
the latent tokens and runs it one position earlier; here both read those of the latent tokens themselves.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from core.config import Config
from vla.heads.interface import Head, HeadSizes, Seen, masked_mean


class L1PoolConfig(Config):
    """Size of the head; the defaults are the published ones."""

    hidden: int = 512
    """Channels that it works in."""
    heads: int = 8
    """Attention heads of each pooling."""


class L1PoolHead(Head):
    """What is pooled from the images is added to the query that pools the latent tokens."""

    is_bounded = True

    def __init__(self, config: L1PoolConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.horizon = sizes.horizon
        self.latent_action_pool = AttentionPool(sizes.width, config)
        self.visual_pool = AttentionPool(sizes.width, config)
        self.proj = nn.Sequential(nn.Linear(config.hidden, sizes.horizon * sizes.action_dims), nn.Tanh())
        self.senses = nn.Linear(sizes.senses, config.hidden) if sizes.senses else None
        if self.senses is not None:
            nn.init.zeros_(self.senses.weight)

    def act(self, seen: Seen, generator: torch.Generator | None = None) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; nothing is drawn."""
        query = self.visual_pool(seen.image)
        if self.senses is not None:
            query = query + self.senses(seen.senses)
        thought = seen.states[:, 1:] if seen.states.shape[1] > 1 else seen.states
        actions = self.proj(self.latent_action_pool(thought, query)).float()
        return rearrange(actions, "batch (horizon dims) -> batch horizon dims", horizon=self.horizon)

    def loss(
        self, seen: Seen, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]
    ) -> dict[str, Tensor]:
        """Mean absolute error."""
        return {"loss": masked_mean((self.act(seen) - actions).abs(), mask)}


class AttentionPool(nn.Module):
    """One learned query over tokens, normalised after each residual, with a gated feed-forward layer."""

    def __init__(self, width: int, config: L1PoolConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, config.hidden))
        self.projection = nn.Linear(width, config.hidden)
        self.attn = CrossAttention(config.hidden, config.heads)
        self.attn_norm, self.mlp_norm = RootMeanSquareNorm(config.hidden), RootMeanSquareNorm(config.hidden)
        self.mlp = nn.Sequential(
            GatedLinear(config.hidden, 4 * config.hidden), nn.Linear(4 * config.hidden, config.hidden)
        )
        nn.init.trunc_normal_(self.latents, std=config.hidden**-0.5)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], query: Float[Tensor, "batch hidden"] | None = None
    ) -> Float[Tensor, "batch hidden"]:
        """The pooled vector; `query` is added to the learned one."""
        asked = self.latents.expand(len(tokens), 1, -1)
        if query is not None:
            asked = asked + query[:, None]
        pooled = self.attn_norm(asked + self.attn(asked, self.projection(tokens)))
        return self.mlp_norm(pooled + self.mlp(pooled))[:, 0]


class CrossAttention(nn.Module):
    """Queries attend tokens."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, 2 * hidden, bias=False)
        self.proj = nn.Linear(hidden, hidden)

    def forward(
        self, queries: Float[Tensor, "batch queries hidden"], tokens: Float[Tensor, "batch tokens hidden"]
    ) -> Float[Tensor, "batch queries hidden"]:
        """One vector a query."""
        split = "batch tokens (heads dim) -> batch heads tokens dim"
        keys, values = self.kv(tokens).chunk(2, dim=-1)
        q, k, v = (rearrange(x, split, heads=self.heads) for x in (self.q(queries), keys, values))
        return self.proj(rearrange(scaled_dot_product_attention(q, k, v), "b heads q dim -> b q (heads dim)"))


class RootMeanSquareNorm(nn.Module):
    """Divides by the root mean square, floored at 1e-8."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Of the same shape."""
        norm = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / norm.clamp(min=1e-8) * self.g


class GatedLinear(nn.Module):
    """SwiGLU: the first half of the projection is the value, the second the gate."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 2 * out)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch out"]:
        """The gated value."""
        value, gate = self.project(x).chunk(2, dim=-1)
        return value * silu(gate)
