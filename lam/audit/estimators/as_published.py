"""Exploratory: the three estimators that comparisons of latent actions have been published with, as far as is known.

Neither settings nor code were released. These are the usual ones: nothing is held out, scales are as they come. They
report bits where there are none, or miss those that there are, and are here to show it; look at the permutation null.
"""

import numpy as np
import torch

from lam.audit.estimators.interface import Estimate, Sample, inputs_of, of_contributions, standardised
from lam.audit.estimators.nearest_neighbours import ksg_between
from lam.audit.estimators.networks import predicted
from lam.audit.estimators.neural import donsker_varadhan_bits, donsker_varadhan_critic
from lam.audit.mutual_information import NOISE_FLOOR


def ksg_as_published(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """KSG on latents as they come, codes as indicator columns: exploratory.

    Bounds: nothing. Bias: on codes, ties and scale decide. Cost: as `ksg`. Source: Kraskov et al. (2004).
    """
    latents = inputs_of(sample) if sample.latents is None else sample.latents
    return ksg_between(latents.astype(np.float64), standardised(sample.actions))


def barber_agakov_as_published(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Barber-Agakov with a network, scored on the samples that it was trained on, dimensions independent: exploratory.

    Bounds: nothing, in training. Bias: upward, by redundant dimensions and by memory. Cost: 1 s at 4,000 samples.
    Source: Barber & Agakov (2003).
    """
    targets, rows = standardised(sample.actions), np.arange(len(sample.actions))
    # "Validated" on the training samples: it never stops early.
    errors = targets - predicted(inputs_of(sample), targets, rows, rows, seed)
    variances = errors.var(axis=0) + NOISE_FLOOR
    nats = 0.5 * (targets**2 - errors**2 / variances - np.log(variances))
    return of_contributions(nats.sum(axis=1) / np.log(2))


def mine_as_published(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """MINE, scored on the samples that it was trained on: exploratory.

    Bounds: nothing, in training. Bias: upward, 2 bits of nothing at 1,000 samples. Cost: 3 s at 4,000 samples.
    Source: Belghazi et al. (2018).
    """
    latents, actions = (
        torch.as_tensor(values, dtype=torch.float32) for values in (inputs_of(sample), standardised(sample.actions))
    )
    rows = np.arange(len(latents))
    model = donsker_varadhan_critic(latents, actions, rows, rows, seed)
    return of_contributions(donsker_varadhan_bits(model, latents, actions, np.random.default_rng(seed)))
