"""`l1_chunk`: a chunk of actions read in parallel from image and latent positions, trained on the absolute error."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.config import Config


class L1ChunkConfig(Config):
    """Size of the head."""

    hidden: int = 512
    """Channels of the two hidden layers."""
    position_width: int = 96
    """Channels that each position's hidden state is reduced to."""
    dropout: float = 0.1
    """Dropout before each hidden layer."""


class L1ChunkHead(nn.Module):
    """A multilayer perceptron over the hidden states at the image and latent positions and the proprioception."""

    def __init__(
        self,
        config: L1ChunkConfig,
        width: int,
        positions: int,
        horizon: int,
        action_dims: int,
        proprioception_dims: int,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.reduce = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.position_width), nn.GELU())
        self.net = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(positions * config.position_width + proprioception_dims, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, horizon * action_dims),
        )

    def forward(
        self,
        image: Float[Tensor, "batch image_tokens width"],
        latent: Float[Tensor, "batch latent_tokens width"],
        proprioception: Float[Tensor, "batch senses"],
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions from hidden states and normalised proprioception (of no channels where it is unused)."""
        reduced = rearrange(self.reduce(torch.cat([image, latent], dim=1)), "batch tokens dim -> batch (tokens dim)")
        actions = self.net(torch.cat([reduced, proprioception], dim=1)).float()
        return rearrange(actions, "batch (horizon dims) -> batch horizon dims", horizon=self.horizon)

    @staticmethod
    def loss(
        predicted: Float[Tensor, "batch horizon dims"],
        actions: Float[Tensor, "batch horizon dims"],
        mask: Bool[Tensor, "batch horizon"],
    ) -> Float[Tensor, ""]:
        """Mean absolute error over the steps that lie in the episode."""
        error = (predicted - actions).abs().mean(-1)
        return (error * mask).sum() / mask.sum().clamp_min(1)
