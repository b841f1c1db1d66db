"""Views agree by being asked to, not by having to explain each other."""

import torch.nn.functional as F

from lam.model import LatentActionModel
from lam.objectives.interface import Terms, Transitions, decoding_error, encode


def view_consistency(model: LatentActionModel, batch: Transitions) -> Terms:
    """Self-reconstruction, and the squared distance between the encodings of two views of the same transition."""
    encoded = encode(model, batch)
    own = decoding_error(model, batch, encoded.codes)
    distance = F.mse_loss(encoded.encodings, encoded.encodings.roll(1, dims=1))
    loss = own + distance + encoded.bottleneck
    return {"loss": loss, "self": own, "distance": distance, "bottleneck": encoded.bottleneck}
