"""Views agree on what tells their transition from the others in the batch."""

import torch
import torch.nn.functional as F

from lam.objectives.interface import Objective, Terms, Transitions, flat

TEMPERATURE = 0.1


class ContrastiveViews(Objective):
    """Self-reconstruction, and InfoNCE (van den Oord et al. 2018): find the other view's encoding in the batch."""

    views_needed = 2

    def terms(self, batch: Transitions) -> Terms:
        """self, contrast (nats, its chance level is the logarithm of the number of candidates), bottleneck."""
        encoded = self.encode(batch)
        own = self.own_error(batch, encoded)
        one, other = batch.cross.unbind(1)
        with torch.autocast(batch.features.device.type, enabled=False):
            directions = F.normalize(flat(encoded.encodings).float(), dim=1)
            similarity = directions[one] @ directions.T / TEMPERATURE
        is_same = batch.sample[one][:, None] == batch.sample[None]
        is_positive = torch.arange(len(directions), device=other.device)[None] == other[:, None]
        similarity = similarity.masked_fill(is_same & ~is_positive, float("-inf"))
        contrast = F.cross_entropy(similarity, other, reduction="sum") / max(len(other), 1)
        loss = own + contrast + encoded.bottleneck
        return {"loss": loss, "self": own, "contrast": contrast, "bottleneck": encoded.bottleneck}
