"""What an objective is given and answers, and the steps that most of them consist of.

A batch holds only what was seen: one row for each camera of each transition, however many cameras each has.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lam.model import LatentActionModel


class Transitions(NamedTuple):
    """A batch of transitions; each camera that saw one of them is a row."""

    features: Float[Tensor, "rows 2 patches dim"]
    """Frozen visual features of the first and the later frame."""
    sample: Int[Tensor, " rows"]
    """Which transition of the batch a row belongs to."""
    camera: Int[Tensor, " rows"]
    """Number of the row's camera among those of the training data."""
    own: Int[Tensor, " own"]
    """Rows whose future is rebuilt from their own latent action."""
    cross: Int[Tensor, "cross 2"]
    """Rows (target, source) of one transition: the target's future is rebuilt from the source's latent action."""
    actions: Float[Tensor, "batch dims"] | None = None
    """Standardised actions, NaN where unknown; only for the objective that is allowed to see them."""
    proprioception: Float[Tensor, "batch 2 senses"] | None = None
    """Standardised proprioception at both frames, NaN where unknown; only for the objective that asks for it."""


Terms = dict[str, Tensor]
"""`loss` is what is minimised; the others are logged. Each is a mean over what it is about."""


class DataFacts(NamedTuple):
    """Sizes of the data that heads depend on; 0 where there is none."""

    cameras: int
    action_dims: int
    senses: int


class Encoded(NamedTuple):
    """Latent actions of every row of a batch."""

    descriptions: Float[Tensor, "rows tokens code_dim"]
    """Before the norm, and the bottleneck."""
    encodings: Float[Tensor, "rows tokens code_dim"]
    """Before the bottleneck."""
    codes: Float[Tensor, "rows tokens code_dim"]
    """Behind it."""
    bottleneck: Float[Tensor, ""]
    """Its loss."""


class Objective(nn.Module):
    """A latent action model and what it is trained to explain; heads of its own are attributes, and are not kept."""

    views_needed: ClassVar[int] = 1
    """Synchronised views without which the objective has nothing to say."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """actions, proprioception: what batches must bring besides features."""

    def __init__(self, model: LatentActionModel, facts: DataFacts) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Terms:
        """Loss terms of a batch as `lam.dataset` makes it."""
        return self.terms(Transitions(**(batch | {"features": batch["features"].float()})))

    def terms(self, batch: Transitions) -> Terms:
        """Loss terms of a batch."""
        raise NotImplementedError

    def encode(self, batch: Transitions) -> Encoded:
        """The latent action that each row alone gives."""
        descriptions = self.model.describe(batch.features)
        encodings = self.model.encoding_norm(descriptions)
        quantized = self.model.quantize(encodings)
        return Encoded(descriptions, encodings, quantized.codes, quantized.loss)

    def pair_errors(
        self, batch: Transitions, encoded: Encoded, pairs: Int[Tensor, "pairs 2"]
    ) -> Float[Tensor, " pairs"]:
        """Mean squared error of each target's future, rebuilt from its first frame and the source's latent action."""
        targets, sources = pairs.unbind(1)
        predicted = self.model.decode(batch.features[targets, 0], encoded.codes[sources])
        return (predicted - batch.features[targets, 1]).square().mean(dim=(1, 2))

    def own_error(self, batch: Transitions, encoded: Encoded) -> Float[Tensor, ""]:
        """Mean error of rows that are rebuilt from their own latent action."""
        return mean(self.pair_errors(batch, encoded, torch.stack([batch.own, batch.own], dim=1)))


def mean(values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The mean, zero where there are no values: a batch need not hold a pair of each kind."""
    return values.sum() / max(values.numel(), 1)


def flat(codes: Float[Tensor, "rows tokens code_dim"]) -> Float[Tensor, "rows channels"]:
    """All tokens of a row side by side."""
    return codes.flatten(1)
