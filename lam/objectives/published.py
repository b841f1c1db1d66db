"""The loss as published, for parity with released checkpoints."""

import torch
import torch.nn.functional as F

from lam.model import LatentActionModel
from lam.objectives.interface import Terms, Transitions, encode


def published(model: LatentActionModel, batch: Transitions) -> Terms:
    """The published loss: half the sum over all view pairs, plus half the sum over views of the quantiser's terms."""
    encoded = encode(model, batch)
    views = encoded.codes.shape[1]
    first, later = batch.features[:, :, 0], batch.features[:, :, 1].float()
    errors = [
        F.mse_loss(model.decode(first[:, i], encoded.codes[:, j]), later[:, i])
        for i in range(views)
        for j in range(views)
    ]
    reconstruction = torch.stack(errors).sum() / 2
    return {"loss": reconstruction + views * encoded.bottleneck / 2, "reconstruction": reconstruction}
