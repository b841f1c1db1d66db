"""How often a pretrained model says the right latent token, beside always saying the most frequent one."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

from core.sampling import step_generator
from vla.dataset import LatentDataset
from vla.model import VisionLanguageActionModel

RESAMPLED = 2000


class TokenAccuracy(NamedTuple):
    """Shares of held-out latent tokens that are right, given the true ones before them."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    """Episodes resampled."""
    majority: float
    """Always the code that is most frequent in training at that position: what has to be beaten."""
    advantage: float
    """Accuracy minus majority."""
    advantage_ci95: tuple[float, float]
    """Episodes resampled, both on the same ones."""
    samples: int
    episodes: int


@torch.no_grad()
def token_accuracy(
    model: VisionLanguageActionModel,
    train: LatentDataset,
    held_out: LatentDataset,
    device: torch.device,
    samples: int,
    at_once: int,
) -> TokenAccuracy:
    """On up to so many held-out samples, `at_once` of them together."""
    generator = step_generator(0, 0)
    indices = generator.permutation(len(held_out))[:samples]
    rows = []
    for start in range(0, len(indices), at_once):
        part = held_out.batch(indices[start : start + at_once], generator)
        batch = {name: value.to(device) for name, value in part.items()}
        logits = model.backbone(batch, model.latents.ids(batch["codes"])).logits[:, :-1].float()
        said = model.latents.codes(model.latents.legal(logits).argmax(-1))
        rows.append((said == batch["codes"]).cpu().numpy())
    most_frequent = torch.from_numpy(train.codes).mode(0).values.numpy()
    majority = held_out.codes[indices] == most_frequent
    return compared(np.concatenate(rows), majority, held_out.episodes[indices])


def compared(
    right: Bool[np.ndarray, "samples tokens"],
    majority: Bool[np.ndarray, "samples tokens"],
    episodes: Int[np.ndarray, " samples"],
) -> TokenAccuracy:
    """Shares with intervals over episodes."""
    names, of_sample = np.unique(episodes, return_inverse=True)
    sums = [np.bincount(of_sample, weights=rows.mean(1)) for rows in (right, majority)]
    counts = np.bincount(of_sample)
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLED, len(names)))
    ours, theirs = (own[draws].sum(1) / counts[draws].sum(1) for own in sums)

    def interval(values: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)

    means = float(right.mean()), float(majority.mean())
    return TokenAccuracy(
        accuracy=means[0],
        accuracy_ci95=interval(ours),
        majority=means[1],
        advantage=means[0] - means[1],
        advantage_ci95=interval(ours - theirs),
        samples=len(right),
        episodes=len(names),
    )
