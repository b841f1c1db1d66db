"""A latent action from which nobody can tell the camera (Li et al. 2018)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lam.model import LatentActionModel
from lam.objectives.interface import DataFacts, Objective, Terms, Transitions, flat

HIDDEN = 128


class ViewAdversary(Objective):
    """Self-reconstruction, and a camera classifier on the codes whose gradient reaches the encoder reversed."""

    views_needed = 2

    def __init__(self, model: LatentActionModel, facts: DataFacts) -> None:
        super().__init__(model, facts)
        channels = model.config.num_tokens * model.config.code_dim
        self.classifier = nn.Sequential(nn.Linear(channels, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, facts.cameras))

    def terms(self, batch: Transitions) -> Terms:
        """self, camera (the classifier's loss in nats; its chance level is the logarithm of the cameras)."""
        encoded = self.encode(batch)
        own = self.own_error(batch, encoded)
        reversed_codes = Reverse.apply(flat(encoded.codes))
        camera = F.cross_entropy(self.classifier(reversed_codes).float(), batch.camera)
        loss = own + camera + encoded.bottleneck
        return {"loss": loss, "self": own, "camera": camera, "bottleneck": encoded.bottleneck}


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is negated (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """The values."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The negated gradient."""
        return -gradients[0]
