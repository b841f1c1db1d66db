"""Reconstruction of a view's future from its own latent action, from another view's, or from a wrong one."""

from jaxtyping import Float
from torch import Tensor

from lam.model import LatentActionModel
from lam.objectives.interface import Encoded, Terms, Transitions, decoding_error, encode


def self_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """Each view's future from its own latent action."""
    encoded = encode(model, batch)
    own = decoding_error(model, batch, encoded.codes)
    return {"loss": own + encoded.bottleneck, "self": own, "bottleneck": encoded.bottleneck}


def self_and_cross_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """Each view's future from its own latent action and from another view's, with equal weight (the paper's idea)."""
    encoded = encode(model, batch)
    return _own_and_other(model, batch, encoded, encoded.codes.roll(1, dims=1))


def mismatched_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """The control of `self_cross`: the second latent action comes from another transition and another view."""
    encoded = encode(model, batch)
    return _own_and_other(model, batch, encoded, encoded.codes.roll(1, dims=1).roll(1, dims=0))


def cross_reconstruction(model: LatentActionModel, batch: Transitions) -> Terms:
    """Each view's future from another view's latent action only."""
    encoded = encode(model, batch)
    cross = decoding_error(model, batch, encoded.codes.roll(1, dims=1))
    return {"loss": cross + encoded.bottleneck, "cross": cross, "bottleneck": encoded.bottleneck}


def _own_and_other(
    model: LatentActionModel,
    batch: Transitions,
    encoded: Encoded,
    others: Float[Tensor, "batch views tokens code_dim"],
) -> Terms:
    own = decoding_error(model, batch, encoded.codes)
    cross = decoding_error(model, batch, others)
    loss = (own + cross) / 2 + encoded.bottleneck
    return {"loss": loss, "self": own, "cross": cross, "bottleneck": encoded.bottleneck}
