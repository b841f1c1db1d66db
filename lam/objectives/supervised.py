"""The ceiling: what the codes are when they may see the action."""

import torch.nn.functional as F
from einops import rearrange

from lam.model import LatentActionModel
from lam.objectives.interface import Terms, Transitions, encode


def action_supervised(model: LatentActionModel, batch: Transitions) -> Terms:
    """The ceiling: codes that are asked for the action itself."""
    if batch.actions is None:
        raise ValueError("objective action_supervised needs episodes with actions; this store has none")
    encoded = encode(model, batch)
    predicted = model.action_probe(rearrange(encoded.codes, "batch views tokens dim -> batch views (tokens dim)"))
    error = F.mse_loss(predicted, batch.actions[:, None].expand_as(predicted))
    return {"loss": error + encoded.bottleneck, "action": error, "bottleneck": encoded.bottleneck}
