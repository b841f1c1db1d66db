"""Codes that are asked for the action itself where it is known: all labelled is a ceiling, few labelled is LAOM."""

from torch import nn

from lam.model import LatentActionModel
from lam.objectives.interface import DataFacts, Objective, Terms, Transitions, flat, mean


class ActionSupervised(Objective):
    """The action, linearly from the codes, where it is known; reconstruction of the view's future where it is not."""

    needs = frozenset({"actions"})

    def __init__(self, model: LatentActionModel, facts: DataFacts) -> None:
        super().__init__(model, facts)
        self.probe = nn.Linear(model.config.num_tokens * model.config.code_dim, facts.action_dims)

    def terms(self, batch: Transitions) -> Terms:
        """Action (in standard deviations, squared), self, bottleneck."""
        assert batch.actions is not None
        encoded = self.encode(batch)
        actions = batch.actions[batch.sample]
        is_known = actions.isfinite().all(1)
        action = mean((self.probe(flat(encoded.codes)) - actions)[is_known].square())
        own = self.own_error(batch._replace(own=batch.own[~is_known[batch.own]]), encoded)
        loss = action + own + encoded.bottleneck
        return {"loss": loss, "action": action, "self": own, "bottleneck": encoded.bottleneck}
