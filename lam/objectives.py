"""What a latent action is trained to explain. Each objective answers its loss terms, each a mean over valid pairs."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lam.model import LatentActionModel


class Transitions(NamedTuple):
    """A batch of transitions, each seen by the same number of synchronised views."""

    features: Float[Tensor, "batch views 2 patches dim"]
    """Frozen visual features of the first and the later frame."""
    actions: Float[Tensor, "batch dims"] | None
    """Standardised actions, only for the objective that is allowed to see them."""


Terms = dict[str, Tensor]
Objective = Callable[[LatentActionModel, Transitions], Terms]


def self_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """Each view's future from its own latent action."""
    codes, bottleneck = _encode(model, batch)
    own = _decoding_error(model, batch, codes)
    return {"loss": own + bottleneck, "self": own, "bottleneck": bottleneck}


def self_and_cross_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """Each view's future from its own latent action and from another view's, with equal weight (the paper's idea)."""
    codes, bottleneck = _encode(model, batch)
    own = _decoding_error(model, batch, codes)
    cross = _decoding_error(model, batch, codes.roll(1, dims=1))
    return {"loss": (own + cross) / 2 + bottleneck, "self": own, "cross": cross, "bottleneck": bottleneck}


def mismatched_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """The control of `self_cross`: the second latent action comes from another transition and another view."""
    codes, bottleneck = _encode(model, batch)
    own = _decoding_error(model, batch, codes)
    cross = _decoding_error(model, batch, codes.roll(1, dims=1).roll(1, dims=0))
    return {"loss": (own + cross) / 2 + bottleneck, "self": own, "cross": cross, "bottleneck": bottleneck}


def action_supervised(model: LatentActionModel, batch: Transitions) -> Terms:
    """The ceiling: codes that are asked for the action itself."""
    if batch.actions is None:
        raise ValueError("objective action_supervised needs episodes with actions; this store has none")
    codes, bottleneck = _encode(model, batch)
    predicted = model.action_probe(rearrange(codes, "batch views tokens dim -> batch views (tokens dim)"))
    error = F.mse_loss(predicted, batch.actions[:, None].expand_as(predicted))
    return {"loss": error + bottleneck, "action": error, "bottleneck": bottleneck}


def published(model: LatentActionModel, batch: Transitions) -> Terms:
    """The published loss: half the sum over all view pairs, plus half the sum over views of the quantiser's terms."""
    codes, _ = _encode(model, batch)
    views = range(codes.shape[1])
    first, later = batch.features[:, :, 0], batch.features[:, :, 1]
    pairs = [F.mse_loss(model.decode(first[:, i], codes[:, j]), later[:, i].float()) for i in views for j in views]
    bottleneck = [model.quantize(model.encode(batch.features[:, i])).loss for i in views]
    reconstruction = torch.stack(pairs).sum() / 2
    return {"loss": reconstruction + torch.stack(bottleneck).sum() / 2, "reconstruction": reconstruction}


OBJECTIVES: dict[str, Objective] = {
    "self": self_reconstruction,
    "self_cross": self_and_cross_reconstruction,
    "mismatched": mismatched_reconstruction,
    "action_supervised": action_supervised,
    "published": published,
}


def _encode(
    model: LatentActionModel, batch: Transitions
) -> tuple[Float[Tensor, "batch views tokens code_dim"], Float[Tensor, ""]]:
    views = batch.features.shape[1]
    flat = rearrange(batch.features, "batch views frames patches dim -> (batch views) frames patches dim")
    quantized = model.quantize(model.encode(flat))
    codes = rearrange(quantized.codes, "(batch views) tokens dim -> batch views tokens dim", views=views)
    return codes, quantized.loss


def _decoding_error(
    model: LatentActionModel, batch: Transitions, codes: Float[Tensor, "batch views tokens code_dim"]
) -> Float[Tensor, ""]:
    first, later = (rearrange(f, "batch views ... -> (batch views) ...") for f in batch.features.unbind(2))
    predicted = model.decode(first, rearrange(codes, "batch views tokens dim -> (batch views) tokens dim"))
    return F.mse_loss(predicted, later.float())
