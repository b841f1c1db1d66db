"""`l1_chunk`: a chunk of actions read in parallel from image and latent positions, trained on the absolute error."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.config import Config
from vla.heads.interface import Head, HeadSizes, Seen, masked_mean


class L1ChunkConfig(Config):
    """Size of the head."""

    hidden: int = 512
    """Channels of the two hidden layers."""
    position_width: int = 96
    """Channels that each position's hidden state is reduced to."""
    dropout: float = 0.1
    """Dropout before each hidden layer."""


class L1ChunkHead(Head):
    """A multilayer perceptron over the hidden states at the image and latent positions and the proprioception."""

    def __init__(self, config: L1ChunkConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.horizon = sizes.horizon
        positions = sizes.image_tokens + sizes.latent_tokens + 1
        self.reduce = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, config.position_width), nn.GELU())
        self.net = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(positions * config.position_width + sizes.senses, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, sizes.horizon * sizes.action_dims),
        )

    def act(self, seen: Seen, generator: torch.Generator | None = None) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; nothing is drawn."""
        states = torch.cat([seen.image, seen.states], dim=1)
        reduced = rearrange(self.reduce(states), "batch tokens dim -> batch (tokens dim)")
        actions = self.net(torch.cat([reduced, seen.senses], dim=1)).float()
        return rearrange(actions, "batch (horizon dims) -> batch horizon dims", horizon=self.horizon)

    def loss(
        self, seen: Seen, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]
    ) -> dict[str, Tensor]:
        """Mean absolute error."""
        return {"loss": masked_mean((self.act(seen) - actions).abs(), mask)}
