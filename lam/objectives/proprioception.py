"""A latent action that also moves the robot's own state (villa-X)."""

import torch
from torch import nn

from lam.model import LatentActionModel
from lam.objectives.interface import DataFacts, Objective, Terms, Transitions, flat, mean

HIDDEN = 256


class ProprioceptiveForward(Objective):
    """Self-reconstruction, and a forward model: state and latent action to the change of the state."""

    needs = frozenset({"proprioception"})

    def __init__(self, model: LatentActionModel, facts: DataFacts) -> None:
        super().__init__(model, facts)
        channels = model.config.num_tokens * model.config.code_dim + facts.senses
        self.forward_model = nn.Sequential(nn.Linear(channels, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, facts.senses))

    def terms(self, batch: Transitions) -> Terms:
        """self, proprioception (in standard deviations of the state, squared), bottleneck."""
        assert batch.proprioception is not None
        encoded = self.encode(batch)
        own = self.own_error(batch, encoded)
        first, later = batch.proprioception[batch.sample].unbind(1)
        is_known = (first + later).isfinite().all(1)
        change = self.forward_model(torch.cat([flat(encoded.codes), first.nan_to_num()], dim=1))
        error = mean((change - (later - first))[is_known].square())
        loss = own + error + encoded.bottleneck
        return {"loss": loss, "self": own, "proprioception": error, "bottleneck": encoded.bottleneck}
