"""`flow`: flow matching: noise becomes a chunk of actions in a few steps along a learned velocity.

Rectified flow (Lipman et al. 2023, arXiv 2210.02747), times drawn as in pi0 (Black et al. 2024, arXiv 2410.24164).
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.config import Config
from vla.heads.interface import Head, HeadSizes, Seen, masked_mean


class FlowConfig(Config):
    """Size of the head, and steps in acting."""

    hidden: int = 512
    """Channels of the hidden layers."""
    position_width: int = 96
    """Channels that each position's hidden state is reduced to."""
    dropout: float = 0.1
    """Dropout on what is seen."""
    steps: int = 8
    """Steps from noise to actions."""
    frequencies: int = 16
    """Sines and cosines that tell the time."""


class FlowHead(Head):
    """The velocity is a multilayer perceptron of the noisy chunk, the time and what is seen."""

    def __init__(self, config: FlowConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config, self.shape = config, (sizes.horizon, sizes.action_dims)
        positions = sizes.image_tokens + sizes.latent_tokens + 1
        self.reduce = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, config.position_width), nn.GELU())
        self.condition = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(positions * config.position_width + sizes.senses, config.hidden),
            nn.GELU(),
        )
        numbers = sizes.horizon * sizes.action_dims
        self.velocity = nn.Sequential(
            nn.Linear(numbers + 2 * config.frequencies + config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, numbers),
        )

    def act(self, seen: Seen, generator: torch.Generator | None = None) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions from noise that `generator` (of the CPU) draws."""
        condition = self._condition(seen)
        chunk = torch.randn(len(seen.states), *self.shape, generator=generator).to(condition.device)
        for step in range(self.config.steps):
            time = torch.full((len(chunk),), step / self.config.steps, device=chunk.device)
            chunk = chunk + self._velocity(chunk, time, condition) / self.config.steps
        return chunk

    def loss(
        self, seen: Seen, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]
    ) -> dict[str, Tensor]:
        """Mean squared error of the velocity, at times early in the flow more often than late."""
        condition = self._condition(seen)
        noise = torch.randn_like(actions)
        uniform = torch.rand(len(actions), device=actions.device)
        time = 0.999 * (1 - uniform ** (1 / 1.5))
        at = time[:, None, None]
        # Beyond the end there is nothing but noise, so that what stands there cannot be seen.
        chunk = torch.where(mask[:, :, None], (1 - at) * noise + at * actions, noise)
        error = self._velocity(chunk, time, condition) - (actions - noise)
        return {"loss": masked_mean(error**2, mask)}

    def _condition(self, seen: Seen) -> Float[Tensor, "batch hidden"]:
        reduced = self.reduce(torch.cat([seen.image, seen.states], dim=1))
        flat = rearrange(reduced, "batch tokens dim -> batch (tokens dim)")
        return self.condition(torch.cat([flat, seen.senses], dim=1))

    def _velocity(
        self,
        chunk: Float[Tensor, "batch horizon dims"],
        time: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch hidden"],
    ) -> Float[Tensor, "batch horizon dims"]:
        periods = torch.logspace(0, 3, self.config.frequencies, device=time.device)
        angles = time[:, None] * periods
        told = torch.cat([angles.sin(), angles.cos(), condition], dim=1)
        flat = self.velocity(torch.cat([chunk.flatten(1), told], dim=1))
        return flat.reshape(chunk.shape).float()
