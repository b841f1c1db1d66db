"""The multi-view latent action model: encode a transition of one view, explain the future of any view."""

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from lam.bottlenecks.by_name import BOTTLENECKS
from lam.bottlenecks.interface import NoCodesError, Quantized
from lam.bottlenecks.nested_dropout import drop_later_tokens
from lam.config import LamConfig
from lam.decoder import FeatureDecoder
from lam.encoder import LatentActionEncoder
from lam.perceptron import PerceptronDecoder, PerceptronEncoder


class LatentActionModel(nn.Module):
    """Encoder, bottleneck and decoder over features of `patches` x `feature_dim`."""

    def __init__(self, config: LamConfig, feature_dim: int, patches: int) -> None:
        super().__init__()
        self.config, self.feature_dim, self.patches = config, feature_dim, patches
        tokens, dim = config.num_tokens, config.code_dim
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.network == "perceptron":
            sizes = (feature_dim, patches, config.patch_width, config.width, tokens, dim)
            self.encoder, self.decoder = PerceptronEncoder(*sizes), PerceptronDecoder(*sizes)
        else:
            width, heads = config.width, config.heads
            self.encoder = LatentActionEncoder(feature_dim, patches, width, config.encoder_blocks, heads, tokens, dim)
            self.decoder = FeatureDecoder(feature_dim, patches, width, config.decoder_blocks, heads, tokens, dim)
        self.encoding_norm = (
            nn.LayerNorm(dim, elementwise_affine=False) if config.normalise_encodings else nn.Identity()
        )
        self.bottleneck = BOTTLENECKS[config.bottleneck](config)

    def checkpoint_gradients(self, is_on: bool) -> None:
        """Whether activations of transformer blocks are computed again for the backward pass, to save memory."""
        for part in (self.encoder, self.decoder):
            part.checkpoint_gradients = is_on

    def encode(self, features: Float[Tensor, "batch 2 patches dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """Continuous encoding of the transition between two frames of one view."""
        return self.encoding_norm(self.describe(features))

    def describe(self, features: Float[Tensor, "batch 2 patches dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """The encoding before its norm, which keeps how large a transition is."""
        if self.config.latent == "of_pair":
            return self.encoder(features).float()
        still = repeat(features, "batch frames patches dim -> (frames batch) 2 patches dim")
        first, later = self.encoder(still).float().chunk(2)
        return later - first

    def quantize(self, encodings: Float[Tensor, "batch tokens code_dim"]) -> Quantized:
        """The encodings through the bottleneck; with nested dropout, in training, only the first tokens of each."""
        quantized = self.bottleneck(encodings)
        if self.config.nested_dropout and self.training:
            return quantized._replace(codes=drop_later_tokens(quantized.codes))
        return quantized

    def decode(
        self, features: Float[Tensor, "batch patches dim"], action: Float[Tensor, "batch tokens code_dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Features of a view's later frame from its first frame and an action."""
        predicted = self.decoder(features, action).float()
        return features.float() + predicted if self.config.predict_change else predicted

    @torch.no_grad()
    def label(self, features: Float[Tensor, "batch 2 patches dim"]) -> Int[Tensor, "batch tokens"]:
        """Code indices of transitions; call in evaluation mode.

        Raises:
            NoCodesError: the bottleneck is continuous.
        """
        indices = self.bottleneck(self.encode(features)).indices
        if indices is None:
            raise NoCodesError(
                f"a latent action model with bottleneck {self.config.bottleneck} has no code indices; "
                "train one with vq, vq_ema or fsq to label or audit codes"
            )
        return indices
