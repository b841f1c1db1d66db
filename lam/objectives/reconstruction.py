"""Reconstruction of a view's future from its own latent action, from another view's, or from a wrong one."""

import torch
from jaxtyping import Int
from torch import Tensor

from lam.objectives.interface import Encoded, Objective, Terms, Transitions, mean


class Own(Objective):
    """Each view's future from its own latent action."""

    def terms(self, batch: Transitions) -> Terms:
        """self, bottleneck."""
        encoded = self.encode(batch)
        own = self.own_error(batch, encoded)
        return {"loss": own + encoded.bottleneck, "self": own, "bottleneck": encoded.bottleneck}


class OwnAndCross(Objective):
    """Each view's future from its own latent action and from another view's (the paper's idea)."""

    views_needed = 2
    cross_weight = 1.0
    """Of the other view's, relative to the own one's."""

    def terms(self, batch: Transitions) -> Terms:
        """self, cross, bottleneck."""
        return self.reconstruction(batch, self.encode(batch))

    def reconstruction(self, batch: Transitions, encoded: Encoded) -> Terms:
        """The terms, from latent actions that are known."""
        own, cross = self._errors(batch, encoded, batch.cross)
        loss = (own + self.cross_weight * cross) / (1 + self.cross_weight) + encoded.bottleneck
        return {"loss": loss, "self": own, "cross": cross, "bottleneck": encoded.bottleneck}

    def _errors(self, batch: Transitions, encoded: Encoded, cross: Int[Tensor, "cross 2"]) -> tuple[Tensor, Tensor]:
        pairs = torch.cat([torch.stack([batch.own, batch.own], dim=1), cross])
        errors = self.pair_errors(batch, encoded, pairs)
        return mean(errors[: len(batch.own)]), mean(errors[len(batch.own) :])


class Mismatched(OwnAndCross):
    """The control of `self_cross`: the second latent action comes from another transition."""

    def _errors(self, batch: Transitions, encoded: Encoded, cross: Int[Tensor, "cross 2"]) -> tuple[Tensor, Tensor]:
        if not len(cross):
            return super()._errors(batch, encoded, cross)
        targets, sources = cross.unbind(1)
        most = int(batch.sample[targets].bincount().max())
        wrong = sources.roll(most)
        is_other = batch.sample[wrong] != batch.sample[targets]
        return super()._errors(batch, encoded, torch.stack([targets, wrong], dim=1)[is_other])


class Cross(Objective):
    """Each view's future from another view's latent action only."""

    views_needed = 2

    def terms(self, batch: Transitions) -> Terms:
        """cross, bottleneck."""
        encoded = self.encode(batch)
        cross = mean(self.pair_errors(batch, encoded, batch.cross))
        return {"loss": cross + encoded.bottleneck, "cross": cross, "bottleneck": encoded.bottleneck}
