"""Neural estimators that are trained on some episodes and scored on others."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lam.audit.estimators.contrast import Critic, blocks_of, contrastive_bits
from lam.audit.estimators.interface import Estimate, Sample, folds_of, inputs_of, of_contributions, standardised
from lam.audit.estimators.networks import LinearAndDeep, fit, seeded
from lam.audit.probes import rank_gaussianise

EMBEDDING, BATCH, HIDDEN = 32, 256, 128
SHUFFLES = 20
"""Pairings of held-out latents with other actions that the mean over the product is taken on."""


def info_nce(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Contrastive bound with a learned critic u(z) . v(a), scored on held-out episodes.

    Bounds: I(Z; A) from below, in expectation, and by log2 of the samples in a fold (or 1,024).
    Bias: downward, by a quarter at 4,000 samples; the variance grows with the bits. Takes: codes or latents.
    Cost: 10 s at 4,000 samples.
    Source: van den Oord et al. (2018, eq. 4); separable critic, Poole et al. (2019).

    Raises:
        ValueError: too few episodes.
    """
    fold_of = folds_of(sample, folds, seed)
    latents, actions = _tensors(sample, seed)
    bits, rng = np.empty(len(latents)), np.random.default_rng(seed)
    for fold in range(folds):
        model = seeded(lambda: _Separable(latents.shape[1], actions.shape[1]), seed + fold)

        def loss(rows: Tensor, model: nn.Module = model) -> Tensor:
            scores = model(latents[rows], actions[rows])
            return torch.mean(torch.logsumexp(scores, dim=1) - torch.diagonal(scores)) - np.log(len(rows))

        fit(model, loss, *_split(fold_of, fold, folds), seed, BATCH)
        with torch.no_grad():
            seen, given = model.actions(actions).numpy(), model.latents(latents).numpy()
        critic = Critic(seen, given[:, :-1], given[:, -1])
        for block in blocks_of(np.flatnonzero(fold_of == fold), rng):
            bits[block] = contrastive_bits(critic.scores(block))
    return of_contributions(bits)


def mine(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Donsker-Varadhan bound with a learned critic f(z, a), scored on held-out episodes.

    Bounds: I(Z; A) from below for the exact mean over the product; the log of a sample mean errs upward a little.
    Bias: downward held out (in training it reports bits where there are none); the variance grows exponentially with
    the bits. Takes: codes or latents. Cost: 5 s at 4,000 samples.
    Source: Belghazi et al. (2018, eq. 10); its variance, Song & Ermon (2020).

    Raises:
        ValueError: too few episodes.
    """
    fold_of = folds_of(sample, folds, seed)
    bits, rng = np.empty(len(fold_of)), np.random.default_rng(seed)
    latents, actions = _tensors(sample, seed)
    for fold in range(folds):
        model = donsker_varadhan_critic(latents, actions, *_split(fold_of, fold, folds), seed + fold)
        test = np.flatnonzero(fold_of == fold)
        bits[test] = donsker_varadhan_bits(model, latents[test], actions[test], rng)
    return of_contributions(bits)


def donsker_varadhan_critic(
    latents: Float[Tensor, "samples features"],
    actions: Float[Tensor, "samples dims"],
    train: np.ndarray,
    validation: np.ndarray,
    seed: int,
) -> nn.Module:
    """A network of latent and action side by side, trained on the bound."""
    model = seeded(lambda: LinearAndDeep(latents.shape[1] + actions.shape[1], 1, HIDDEN), seed)

    def loss(rows: Tensor) -> Tensor:
        # Rolled: an order that needs no random numbers, rows being in random order already.
        together = model(torch.cat([latents[rows], actions[rows]], dim=1)).mean()
        apart = [model(torch.cat([latents[rows], actions[rows].roll(by, 0)], dim=1)) for by in (1, 2)]
        scores = torch.cat(apart)
        return torch.logsumexp(scores, dim=0).squeeze() - np.log(len(scores)) - together

    fit(model, loss, train, np.random.default_rng(seed).permutation(validation), seed, BATCH)
    return model


def donsker_varadhan_bits(
    model: nn.Module,
    latents: Float[Tensor, "samples features"],
    actions: Float[Tensor, "samples dims"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " samples"]:
    """What each pair adds to the bound."""
    with torch.no_grad():
        together = model(torch.cat([latents, actions], dim=1))[:, 0].numpy().astype(np.float64)
        orders = [torch.as_tensor(rng.permutation(len(actions))) for _ in range(SHUFFLES)]
        apart = torch.cat([model(torch.cat([latents, actions[order]], dim=1))[:, 0] for order in orders])
        return (together - float(torch.logsumexp(apart.double(), dim=0)) + np.log(len(apart))) / np.log(2)


class _Separable(nn.Module):
    def __init__(self, features: int, dims: int) -> None:
        super().__init__()
        self.latents = LinearAndDeep(features, EMBEDDING + 1, HIDDEN)
        self.actions = nn.Sequential(nn.Linear(dims, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, EMBEDDING))

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        given = self.latents(latents)
        return self.actions(actions) @ given[:, :-1].T + given[:, -1]


def _split(fold_of: np.ndarray, fold: int, folds: int) -> tuple[np.ndarray, np.ndarray]:
    held_out = (fold + 1) % folds
    return np.flatnonzero((fold_of != fold) & (fold_of != held_out)), np.flatnonzero(fold_of == held_out)


def _tensors(sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
    actions = rank_gaussianise(standardised(sample.actions), np.random.default_rng(seed))
    return tuple(torch.as_tensor(values, dtype=torch.float32) for values in (inputs_of(sample), actions))
