"""Size and form of a latent action model; the defaults are the paper's."""

from math import prod
from typing import Literal

from pydantic import Field, model_validator

from core.config import Config


class LamConfig(Config):
    """Size and form of a latent action model; the defaults are the paper's."""

    network: Literal["transformer", "perceptron"] = "transformer"
    """Form of encoder and decoder: the paper's, or one that learns in minutes from fixed numbers of patches."""
    latent: Literal["of_pair", "of_change"] = "of_pair"
    """What the encoder sees: both frames at once (the paper's), or each alone, the latent being the change of what it
    says: zero where nothing moves, opposite backwards, added up over time."""
    width: int = Field(default=768, ge=1)
    """Channels of encoder and decoder; of the hidden layers in a perceptron."""
    patch_width: int = Field(default=24, ge=3)
    """Channels that a perceptron's encoder keeps of each patch, and of its change; its decoder keeps a third fewer."""
    heads: int = Field(default=12, ge=1)
    """Attention heads of a transformer."""
    encoder_blocks: int = Field(default=12, ge=1)
    """Spatio-temporal blocks of a transformer."""
    decoder_blocks: int = Field(default=12, ge=1)
    """Spatial blocks of a transformer."""
    num_tokens: int = Field(default=4, ge=1)
    """Action tokens a transition."""
    code_dim: int = Field(default=128, ge=1)
    """Channels of a token."""
    bottleneck: Literal["vq", "vq_ema", "fsq", "gaussian_kl", "none"] = "vq"
    """What tokens are squeezed through: a file in lam/bottlenecks."""
    nested_dropout: bool = False
    """In training the decoder gets only the first few tokens, so that they hold most and any number can be used."""
    num_codes: int = Field(default=16, ge=2)
    """vq, vq_ema, fsq: values that a token can take."""
    codebook: Literal["shared", "per_token"] = "shared"
    """vq, vq_ema: one codebook for all tokens (the paper's), or one a token."""
    beta: float = 0.25
    """vq, vq_ema: weight of the commitment term."""
    ema_decay: float = 0.99
    """vq_ema: decay of the moving averages that the codes are."""
    levels: tuple[int, ...] = (4, 4)
    """fsq: values of each of its dimensions; their product is num_codes."""
    kl_weight: float = 1e-3
    """gaussian_kl: weight of the divergence from a standard normal, in nats a channel."""
    normalise_encodings: bool = False
    """LayerNorm without gain before the bottleneck, which keeps distances in proportion to the codebook."""
    predict_change: bool = False
    """The decoder predicts the change from the first frame's features, not the later features themselves."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "LamConfig":
        if self.network == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.network == "transformer" and self.width % 2:
            raise ValueError(f"width {self.width} must be even, half of it holds sines and half cosines of positions")
        if self.bottleneck == "fsq" and prod(self.levels) != self.num_codes:
            raise ValueError(
                f"levels {self.levels} make {prod(self.levels)} codes, num_codes is {self.num_codes}; let them agree"
            )
        if self.bottleneck == "fsq" and min(self.levels) < 3:
            raise ValueError(f"levels {self.levels} must be 3 or more each")
        return self
