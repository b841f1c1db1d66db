"""`nano`: patches of a frozen visual tower and BPE tokens through a small Llama, for one CPU core or one GPU."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from core.config import Config
from vla.backbones.causal import CausalBackbone
from vla.backbones.interface import Setting
from vla.tokens import train_tokenizer


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
    """Image tokens of a camera; each sees the whole patch grid, at fixed places."""
    dropout: float = 0.1
    """Dropout before each hidden layer of the projector."""


class NanoBackbone(CausalBackbone):
    """A dense layer over all patches finds small things on a table from a fixed camera in a tenth of the steps that
    attention needs from scratch (docs/experiments.md).
    """  # noqa: D205

    reads_features, comes_pretrained = True, False

    def __init__(self, config: NanoConfig, setting: Setting, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(LlamaForCausalLM(_language_config(config, len(tokenizer))), tokenizer)
        self.extra_tokens = self.image_tokens = setting.views * config.image_tokens
        rows, columns = setting.grid
        self.reduce = nn.Sequential(
            nn.LayerNorm(setting.feature_dim), nn.Linear(setting.feature_dim, config.patch_width), nn.GELU()
        )
        self.project = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(rows * columns * config.patch_width, config.projector_width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.projector_width, config.projector_width),
            nn.GELU(),
            nn.Linear(config.projector_width, config.image_tokens * config.width),
        )
        self.positions = nn.Parameter(torch.randn(self.image_tokens, config.width) * 0.02)
        self.set_latents(setting)

    @classmethod
    def fresh(cls, options: NanoConfig, setting: Setting, texts: Sequence[str]) -> "NanoBackbone":
        """A random network; its tokenizer is learned from the prompts."""
        return cls(options, setting, train_tokenizer(texts, setting.num_codes))

    @classmethod
    def restored(cls, options: NanoConfig, setting: Setting, folder: Path) -> "NanoBackbone":
        """The same with a tokenizer of before."""
        return cls(options, setting, AutoTokenizer.from_pretrained(folder))

    def embed_images(
        self, images: Float[Tensor, "batch views patches dim"]
    ) -> Float[Tensor, "batch image_tokens width"]:
        """Image tokens of the frozen tower's patch features, camera by camera."""
        reduced = rearrange(self.reduce(images.float()), "batch views patches dim -> batch views (patches dim)")
        tokens = rearrange(self.project(reduced), "b views (tokens width) -> b (views tokens) width", width=self.width)
        return tokens + self.positions

    def image_for_heads(
        self, projected: Float[Tensor, "batch image_tokens width"], hidden: Float[Tensor, "batch image_tokens width"]
    ) -> Float[Tensor, "batch image_tokens width"]:
        """The image tokens as they enter the transformer, whose few blocks add nothing to them."""
        return projected


def _language_config(config: NanoConfig, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
