"""The loss as published, for parity with released checkpoints."""

import torch
import torch.nn.functional as F

from lam.model import LatentActionModel
from lam.objectives.interface import Terms, Transitions, encode


def published(model: LatentActionModel, batch: Transitions) -> Terms:
    """The published loss: half the sum over all view pairs, plus half the sum over views of the quantiser's terms."""
    codes = encode(model, batch).codes
    views = range(codes.shape[1])
    first, later = batch.features[:, :, 0], batch.features[:, :, 1]
    pairs = [F.mse_loss(model.decode(first[:, i], codes[:, j]), later[:, i].float()) for i in views for j in views]
    bottleneck = [model.quantize(model.encode(batch.features[:, i])).loss for i in views]
    reconstruction = torch.stack(pairs).sum() / 2
    return {"loss": reconstruction + torch.stack(bottleneck).sum() / 2, "reconstruction": reconstruction}
