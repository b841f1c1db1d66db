"""The estimators by name, with what each takes and how many samples it can afford."""

from importlib import import_module
from typing import NamedTuple

from lam.audit.estimators.interface import Estimate, Sample

PRIMARY = "contrastive"
"""The one to believe: see docs/calibration.md."""


class Entry(NamedTuple):
    """One estimator."""

    where: str
    """Import string."""
    takes: str
    """"codes", "latents" or "either"."""
    max_samples: int
    """Beyond this many a random part of the samples is used: time and memory stay bounded."""
    exploratory: bool = False
    """Can report bits where there are none; shown, with its null, to be seen through."""
    needs_discrete_actions: bool = False
    """Counts joint values of codes and actions."""


_PACKAGE = "lam.audit.estimators"
ESTIMATORS = {
    "contrastive": Entry(f"{_PACKAGE}.contrastive:contrastive", "either", 30_000),
    "cross_entropy": Entry(f"{_PACKAGE}.cross_entropy:cross_entropy", "codes", 20_000),
    "barber_agakov_linear": Entry(f"{_PACKAGE}.barber_agakov:barber_agakov_linear", "either", 100_000),
    "barber_agakov_mlp": Entry(f"{_PACKAGE}.barber_agakov:barber_agakov_mlp", "either", 30_000),
    "info_nce": Entry(f"{_PACKAGE}.neural:info_nce", "either", 20_000),
    "mine": Entry(f"{_PACKAGE}.neural:mine", "either", 20_000),
    "ksg": Entry(f"{_PACKAGE}.nearest_neighbours:ksg", "latents", 5_000, exploratory=True),
    "gao": Entry(f"{_PACKAGE}.nearest_neighbours:gao", "latents", 5_000, exploratory=True),
    "ross": Entry(f"{_PACKAGE}.nearest_neighbours:ross", "codes", 5_000, exploratory=True),
    "plug_in": Entry(f"{_PACKAGE}.discrete:plug_in", "codes", 1_000_000, exploratory=True, needs_discrete_actions=True),
    "miller_madow": Entry(
        f"{_PACKAGE}.discrete:miller_madow", "codes", 1_000_000, exploratory=True, needs_discrete_actions=True
    ),
    "nsb": Entry(f"{_PACKAGE}.discrete:nsb", "codes", 1_000_000, needs_discrete_actions=True),
    "ksg_as_published": Entry(f"{_PACKAGE}.as_published:ksg_as_published", "either", 2_000, exploratory=True),
    "barber_agakov_as_published": Entry(
        f"{_PACKAGE}.as_published:barber_agakov_as_published", "either", 20_000, exploratory=True
    ),
    "mine_as_published": Entry(f"{_PACKAGE}.as_published:mine_as_published", "either", 20_000, exploratory=True),
}


def estimate(name: str, sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """What the estimator called `name` reports.

    Raises:
        ValueError: no such estimator, or the sample is not what it takes.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"no estimator is called {name}; there are {', '.join(ESTIMATORS)}")
    module, function = ESTIMATORS[name].where.split(":")
    return getattr(import_module(module), function)(sample, folds, seed)
