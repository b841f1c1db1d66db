"""Watching over a codebook in training: its use is logged, dead codes are replaced, a collapse is said aloud."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from core.run import say
from core.sampling import step_generator
from lam.bottlenecks.interface import codebook_health
from lam.mixture import Mixture, first_rows
from lam.model import LatentActionModel

CHECK_EVERY = 50
"""Steps between looks at a codebook whose codes are never replaced."""
COLLAPSED_PERPLEXITY = 2.0
COLLAPSED_CHECKS = 4
LAST_REVIVAL = 0.8
"""Share of the steps after which codes are left alone, so that they can settle."""
COLLAPSED = (
    "train_lam: WARNING: the codebook has collapsed, perplexity {perplexity:.2f} of {codes} codes at step {step} and "
    "the {before} checks before; try model.normalise_encodings: true, model.codebook: per_token, a smaller "
    "training.learning_rate, or a smaller revive_every ({every} now)"
)


class CodebookWatch:
    """After each step; every `revive_every` steps (0: never) counts are summed over processes, unused codes replaced.

    The new codes are perturbed encodings of the main process's last batch, so that all processes place the same ones.
    """

    def __init__(
        self, model: LatentActionModel, accelerator: Accelerator, *, revive_every: int, steps: int, seed: int
    ) -> None:
        self.bottleneck, self.accelerator = model.bottleneck, accelerator
        self.every, self.seed = revive_every or CHECK_EVERY, seed
        self.last_revival = LAST_REVIVAL * steps if revive_every else 0
        self.low_checks = 0

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, Any]:
        """Codebook metrics every so many steps, nothing on the others."""
        if self.bottleneck.num_codes is None or (step + 1) % self.every:
            return {}
        counts = self.accelerator.reduce(self.bottleneck.counts.clone(), reduction="sum")
        self.bottleneck.counts.copy_(counts)
        metrics: dict[str, Any] = codebook_health(counts) | {"code_histogram": counts.tolist()}
        self._warn_of_collapse(metrics["perplexity"], step)
        if step + 1 <= self.last_revival:
            assert self.bottleneck.recent is not None
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            metrics["revived"] = float(self.bottleneck.revive(self.bottleneck.recent, generator))
        else:
            self.bottleneck.counts.zero_()
        return metrics

    def _warn_of_collapse(self, perplexity: float, step: int) -> None:
        """Say so once, when hardly more than one code was used for several checks in a row."""
        self.low_checks = self.low_checks + 1 if perplexity < COLLAPSED_PERPLEXITY else 0
        if self.low_checks == COLLAPSED_CHECKS and self.accelerator.is_main_process:
            facts = {"codes": self.bottleneck.num_codes, "before": COLLAPSED_CHECKS - 1, "every": self.every}
            say(COLLAPSED.format(perplexity=perplexity, step=step + 1, **facts))


@torch.no_grad()
def sample_encodings(model: LatentActionModel, dataset: Mixture, seed: int) -> Tensor:
    """Encodings of 128 transitions, the same on every process."""
    generator = step_generator(seed, 0, rank=2**20)
    batch = dataset.batch(generator.integers(0, len(dataset), 128), generator)
    features = first_rows(batch)
    return model.encode(features.to(next(model.parameters()).device))


def start_codebook(model: LatentActionModel, dataset: Mixture, seed: int) -> None:
    """Place the codes on encodings of real transitions, so that all are in use from the first step."""
    model.bottleneck.revive(sample_encodings(model, dataset, seed), torch.Generator().manual_seed(seed))
