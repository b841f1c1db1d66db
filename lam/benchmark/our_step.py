"""Our training step on given features: the objective, its gradients, clipping and AdamW, as the trainer does them."""

from copy import copy
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lam.benchmark.published_step import CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY
from lam.model import LatentActionModel
from lam.objectives.by_name import OBJECTIVES
from lam.objectives.interface import DataFacts
from lam.view_pairs import view_pairs

Batch = dict[str, Tensor]
Step = TypeVar("Step")


class OurStep:
    """Call it to take one step; `gradients` and `update` are its halves."""

    def __init__(self, model: LatentActionModel, batch: Batch, bf16: bool) -> None:
        self.objective = OBJECTIVES["self_cross"](model.train(), DataFacts(cameras=1, action_dims=0, senses=0))
        self.batch, self.bf16 = batch, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def __call__(self) -> float:
        """The loss before the step."""
        loss = self.gradients()
        self.update()
        return loss.item()

    def gradients(self) -> Tensor:
        """Forward and backward."""
        with torch.autocast(self.batch["features"].device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.objective(self.batch)["loss"]
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Clipping and the optimiser."""
        nn.utils.clip_grad_norm_(self.objective.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def batch_of(features: Float[Tensor, "views batch 2 patches dim"], pairs: int) -> Batch:
    """A batch as `lam.dataset` draws it: at most `pairs` own and `pairs` cross pairs of each transition; 0: all."""
    views, size = features.shape[:2]
    chosen = view_pairs(views, pairs)
    first = torch.arange(size)[:, None] * chosen.slots
    own = torch.tensor(chosen.own)
    cross = torch.tensor(chosen.cross, dtype=torch.long).reshape(-1, 2)
    batch = {
        "features": features[: chosen.slots].transpose(0, 1).flatten(0, 1),
        "sample": torch.arange(size).repeat_interleave(chosen.slots),
        "camera": torch.arange(chosen.slots).repeat(size),
        "own": (first + own).flatten(),
        "cross": (first[:, :, None] + cross).flatten(0, 1),
    }
    return {name: values.to(features.device) for name, values in batch.items()}


def changed(step: Step, **attributes: Any) -> Step:
    """The same step under other conditions: model and optimiser are shared."""
    other = copy(step)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other
