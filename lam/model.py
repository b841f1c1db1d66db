"""The multi-view latent action model: encode a transition of one view, explain the future of any view."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from core.config import Config
from lam.decoder import FeatureDecoder
from lam.encoder import LatentActionEncoder
from lam.perceptron import PerceptronDecoder, PerceptronEncoder
from lam.quantizers import Quantized, VectorQuantizer


class LamConfig(Config):
    """Size and form of a latent action model; the defaults are the paper's."""

    network: Literal["transformer", "perceptron"] = "transformer"
    """Form of encoder and decoder: the paper's, or one that learns in minutes from fixed numbers of patches."""
    width: int = 768
    """Channels of encoder and decoder; of the hidden layers in a perceptron."""
    heads: int = 12
    """Attention heads of a transformer."""
    encoder_blocks: int = 12
    """Spatio-temporal blocks of a transformer."""
    decoder_blocks: int = 12
    """Spatial blocks of a transformer."""
    num_tokens: int = 4
    """Action tokens a transition."""
    num_codes: int = 16
    """Codes of a codebook."""
    code_dim: int = 128
    """Channels of a code."""
    beta: float = 0.25
    """Weight of the commitment term."""
    codebook: Literal["shared", "per_token"] = "shared"
    """One codebook for all tokens (the paper's), or one a token."""
    normalise_encodings: bool = False
    """LayerNorm without gain before the quantiser, which keeps distances in proportion to the codebook."""
    predict_change: bool = False
    """The decoder predicts the change from the first frame's features, not the later features themselves."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "LamConfig":
        if self.network == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class LatentActionModel(nn.Module):
    """Encoder, quantiser and decoder over features of `patches` x `feature_dim`."""

    def __init__(self, config: LamConfig, feature_dim: int, patches: int) -> None:
        super().__init__()
        self.config, self.feature_dim, self.patches = config, feature_dim, patches
        tokens, dim = config.num_tokens, config.code_dim
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.network == "perceptron":
            self.encoder = PerceptronEncoder(feature_dim, patches, config.width, tokens, dim)
            self.decoder = PerceptronDecoder(feature_dim, patches, config.width, tokens, dim)
        else:
            width, heads = config.width, config.heads
            self.encoder = LatentActionEncoder(feature_dim, patches, width, config.encoder_blocks, heads, tokens, dim)
            self.decoder = FeatureDecoder(feature_dim, patches, width, config.decoder_blocks, heads, tokens, dim)
        self.encoding_norm = (
            nn.LayerNorm(dim, elementwise_affine=False) if config.normalise_encodings else nn.Identity()
        )
        self.quantizer = VectorQuantizer(config.num_codes, dim, tokens, config.beta, config.codebook == "shared")

    def encode(self, features: Float[Tensor, "batch 2 patches dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """Continuous encoding of the transition between two frames of one view."""
        return self.encoding_norm(self.encoder(features).float())

    def quantize(self, encodings: Float[Tensor, "batch tokens code_dim"]) -> Quantized:
        """The encodings through the bottleneck."""
        return self.quantizer(encodings)

    def decode(
        self, features: Float[Tensor, "batch patches dim"], action: Float[Tensor, "batch tokens code_dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Features of a view's later frame from its first frame and an action."""
        predicted = self.decoder(features, action).float()
        return features.float() + predicted if self.config.predict_change else predicted

    @torch.no_grad()
    def label(self, features: Float[Tensor, "batch 2 patches dim"]) -> Int[Tensor, "batch tokens"]:
        """Code indices of transitions."""
        return self.quantizer.nearest(self.encode(features))
