"""A Gaussian bottleneck: tokens carry as many nats as they are worth to the decoder (a variational autoencoder's)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lam.bottlenecks.interface import Bottleneck, Quantized


class GaussianBottleneck(Bottleneck):
    """Mean and variance of each channel; a draw in training, the mean otherwise."""

    def __init__(self, dim: int, num_tokens: int, kl_weight: float) -> None:
        super().__init__(num_tokens, None)
        self.kl_weight = kl_weight
        self.moments = nn.Linear(dim, 2 * dim)

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> Quantized:
        """Samples; kl_weight x divergence from a standard normal, the mean over channels (nats)."""
        mean, log_variance = self.moments(encodings).float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-20, 10)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        codes = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        return Quantized(codes, None, self.kl_weight * divergence)
