"""Views agree by being asked to, not by having to explain each other."""

from lam.objectives.interface import Objective, Terms, Transitions, mean


class ViewConsistency(Objective):
    """Self-reconstruction, and the squared distance between the encodings of two views of the same transition."""

    views_needed = 2

    def terms(self, batch: Transitions) -> Terms:
        """self, distance, bottleneck."""
        encoded = self.encode(batch)
        own = self.own_error(batch, encoded)
        one, other = (encoded.encodings[rows] for rows in batch.cross.unbind(1))
        distance = mean((one - other).square())
        loss = own + distance + encoded.bottleneck
        return {"loss": loss, "self": own, "distance": distance, "bottleneck": encoded.bottleneck}
