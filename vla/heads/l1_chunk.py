"""`l1_chunk`: a chunk of actions decoded in parallel by cross-attention, trained on the absolute error."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.config import Config


class L1ChunkConfig(Config):
    """Size of the head."""

    layers: int = 2
    """Cross-attention blocks."""
    heads: int = 6
    """Attention heads."""
    dropout: float = 0.05
    """Dropout in the blocks."""


class L1ChunkHead(nn.Module):
    """One learned query a step of the chunk; queries start from the last hidden state, which has seen everything."""

    def __init__(self, config: L1ChunkConfig, width: int, horizon: int, action_dims: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.summary = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, config.heads, 2 * width, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dims))

    def forward(
        self, hidden: Float[Tensor, "batch positions width"], mask: Bool[Tensor, "batch positions"]
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; `mask` is False at padding."""
        queries = self.queries + self.summary(hidden[:, -1])[:, None]
        for block in self.blocks:
            queries = block(queries, hidden, memory_key_padding_mask=~mask)
        return self.out(queries).float()

    @staticmethod
    def loss(
        predicted: Float[Tensor, "batch horizon dims"],
        actions: Float[Tensor, "batch horizon dims"],
        mask: Bool[Tensor, "batch horizon"],
    ) -> Float[Tensor, ""]:
        """Mean absolute error over the steps that lie in the episode."""
        error = (predicted - actions).abs().mean(-1)
        return (error * mask).sum() / mask.sum().clamp_min(1)
