"""Views agree on what tells their transition from the others in the batch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lam.objectives.interface import Encoded, Objective, Terms, Transitions, flat
from lam.objectives.reconstruction import OwnAndCross

SHARPNESS = 5.0
"""Nats by which a row at the mean squared distance is less likely than one at none."""
TINY = 1e-12


class ContrastiveViews(Objective):
    """Self-reconstruction, and InfoNCE (van den Oord et al. 2018): find the other view's description in the batch."""

    views_needed = 2
    contrast_weight = 0.05
    """Of a nat of the contrast, relative to the reconstruction."""

    def terms(self, batch: Transitions) -> Terms:
        """self, contrast (nats, its chance level is the logarithm of the number of candidates), bottleneck."""
        encoded = self.encode(batch)
        own, contrast = self.own_error(batch, encoded), contrast_of_views(batch, encoded)
        loss = own + self.contrast_weight * contrast + encoded.bottleneck
        return {"loss": loss, "self": own, "contrast": contrast, "bottleneck": encoded.bottleneck}


class CrossAndContrast(OwnAndCross):
    """Reconstruction from the own and from another view's latent action, and the contrast as well."""

    contrast_weight = 0.05
    """Of a nat of the contrast, relative to the mean of both reconstructions."""

    def terms(self, batch: Transitions) -> Terms:
        """self, cross, contrast, bottleneck."""
        encoded = self.encode(batch)
        terms, contrast = self.reconstruction(batch, encoded), contrast_of_views(batch, encoded)
        return terms | {"loss": terms["loss"] + self.contrast_weight * contrast, "contrast": contrast}


def contrast_of_views(batch: Transitions, encoded: Encoded) -> Float[Tensor, ""]:
    """Nats of surprise at the row of the other view, among it and all rows of other transitions.

    Rows are the likelier the nearer their descriptions, before norm and bottleneck, so that the size of a motion
    counts. Distances are in units of the batch's mean one: shrinking everything to a point would gain nothing (in
    absolute units that is a trap, docs/experiments.md). Zero without pairs. On several processes the candidates are
    those of the own process.
    """
    one, other = batch.cross.unbind(1)
    with torch.autocast(batch.features.device.type, enabled=False):
        points = flat(encoded.descriptions).float()
        points = points - points.mean(dim=0)
        lengths = points.square().sum(1)
        distances = lengths[one][:, None] + lengths - 2 * points[one] @ points.T
        nearness = -SHARPNESS * distances / (2 * lengths.mean()).clamp_min(TINY)
    is_same = batch.sample[one][:, None] == batch.sample[None]
    is_other = torch.arange(len(points), device=other.device)[None] == other[:, None]
    nearness = nearness.masked_fill(is_same & ~is_other, float("-inf"))
    return F.cross_entropy(nearness, other, reduction="sum") / max(len(other), 1)
