"""The loss as published, for parity with released checkpoints."""

import torch

from lam.objectives.interface import Objective, Terms, Transitions


class Published(Objective):
    """Half the sum over all view pairs of a transition, plus half the sum over its views of the bottleneck's terms.

    Its weight of self, cross and bottleneck depends on the number of views; it wants all pairs
    (`pairs_per_transition: 0`).
    """

    def terms(self, batch: Transitions) -> Terms:
        """Reconstruction."""
        encoded = self.encode(batch)
        samples = batch.sample.unique().numel()
        pairs = torch.cat([torch.stack([batch.own, batch.own], dim=1), batch.cross])
        reconstruction = self.pair_errors(batch, encoded, pairs).sum() / samples / 2
        views = len(batch.sample) / samples
        return {"loss": reconstruction + views * encoded.bottleneck / 2, "reconstruction": reconstruction}
