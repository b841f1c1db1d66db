"""What an objective is given and answers, and the two steps that most of them consist of."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lam.model import LatentActionModel
from lam.quantizers import Quantized


class Transitions(NamedTuple):
    """A batch of transitions, each seen by the same number of synchronised views."""

    features: Float[Tensor, "batch views 2 patches dim"]
    """Frozen visual features of the first and the later frame."""
    actions: Float[Tensor, "batch dims"] | None
    """Standardised actions, only for the objective that is allowed to see them."""


Terms = dict[str, Tensor]
"""`loss` is what is minimised; the others are logged. Each is a mean over valid pairs."""

Objective = Callable[[LatentActionModel, Transitions], Terms]


class Encoded(NamedTuple):
    """Latent actions of every view of a batch."""

    encodings: Float[Tensor, "batch views tokens code_dim"]
    """Before the bottleneck."""
    codes: Float[Tensor, "batch views tokens code_dim"]
    """Behind it."""
    bottleneck: Float[Tensor, ""]
    """Its loss."""


def encode(model: LatentActionModel, batch: Transitions) -> Encoded:
    """The latent action that each view alone gives."""
    views = batch.features.shape[1]
    encodings = model.encode(rearrange(batch.features, "batch views ... -> (batch views) ..."))
    quantized: Quantized = model.quantize(encodings)
    by_view = "(batch views) tokens dim -> batch views tokens dim"
    return Encoded(
        rearrange(encodings, by_view, views=views), rearrange(quantized.codes, by_view, views=views), quantized.loss
    )


def decoding_error(
    model: LatentActionModel, batch: Transitions, codes: Float[Tensor, "batch views tokens code_dim"]
) -> Float[Tensor, ""]:
    """Mean squared error of every view's future, rebuilt from its first frame and the latent action in its place."""
    first, later = (rearrange(f, "batch views ... -> (batch views) ...") for f in batch.features.unbind(2))
    predicted = model.decode(first, rearrange(codes, "batch views tokens dim -> (batch views) tokens dim"))
    return F.mse_loss(predicted, later.float())
