"""`nano`: patches of a frozen visual tower and BPE tokens through a small Llama, for one CPU core or one GPU."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel

from core.config import Config
from vla.backbones.interface import BackboneOutput


class NanoConfig(Config):
    """Size of the small transformer."""

    width: int = 128
    """Channels."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    feed_forward: int = 384
    """Channels of the gated feed-forward layer."""
    patch_width: int = 8
    """Channels that every patch is reduced to before all patches together make the image tokens."""
    projector_width: int = 512
    """Channels of the two hidden layers between the patches and the image tokens."""
    image_tokens: int = 4
    """Image tokens; each sees the whole patch grid, at fixed places."""
    dropout: float = 0.1
    """Dropout before each hidden layer of the projector."""


class NanoBackbone(nn.Module):
    """Image tokens first, then text; causal throughout."""

    def __init__(self, config: NanoConfig, feature_dim: int, grid: tuple[int, int], vocabulary: int) -> None:
        super().__init__()
        self.config, self.width, self.image_tokens = config, config.width, config.image_tokens
        rows, columns = grid
        self.reduce = nn.Sequential(nn.LayerNorm(feature_dim), nn.Linear(feature_dim, config.patch_width), nn.GELU())
        self.project = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(rows * columns * config.patch_width, config.projector_width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.projector_width, config.projector_width),
            nn.GELU(),
            nn.Linear(config.projector_width, config.image_tokens * config.width),
        )
        self.positions = nn.Parameter(torch.randn(config.image_tokens, config.width) * 0.02)
        self.embeddings = nn.Embedding(vocabulary, config.width)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.language = LlamaModel(
            LlamaConfig(
                vocab_size=1,
                hidden_size=config.width,
                intermediate_size=config.feed_forward,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=1024,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.language.embed_tokens = None

    def embed_images(self, features: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch image_tokens width"]:
        """Image tokens of the frozen tower's patch features.

        A dense layer over all patches finds small things on a table from a fixed camera in a tenth of the steps that
        attention needs from scratch (docs/experiments.md).
        """
        reduced = rearrange(self.reduce(features), "batch patches dim -> batch (patches dim)")
        tokens = self.project(reduced)
        return (
            rearrange(tokens, "batch (tokens width) -> batch tokens width", tokens=self.image_tokens) + self.positions
        )

    def forward(
        self,
        features: Float[Tensor, "batch patches dim"] | None,
        ids: Int[Tensor, "batch text"],
        mask: Bool[Tensor, "batch whole_text"],
        cache: Any = None,
        use_cache: bool = False,
    ) -> BackboneOutput:
        """Image tokens as projected, hidden states and logits of the text positions.

        With a `cache` from an earlier call, `features` is None, `ids` holds only new tokens and `mask` the whole text.
        """
        tokens, image = self.embeddings(ids), None
        if features is not None:
            image = self.embed_images(features)
            tokens = torch.cat([image, tokens], dim=1)
        image_mask = torch.ones(len(ids), self.image_tokens, dtype=torch.bool, device=ids.device)
        whole = torch.cat([image_mask, mask], dim=1)
        positions = (whole.long().cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        if use_cache and cache is None:
            cache = DynamicCache()
        out = self.language(
            inputs_embeds=tokens,
            attention_mask=whole.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
        )
        hidden = out.last_hidden_state[:, -ids.shape[1] :]
        return BackboneOutput(image, hidden, hidden @ self.embeddings.weight.T, cache)
