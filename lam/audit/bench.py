"""Everything that the sections measure on: held-out and training transitions, models, floor and references."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from core.live_features import LiveFeatures
from core.run import read_manifest
from core.store import Store
from lam.audit.sample import (
    Sample,
    action_columns,
    action_names,
    computed_once,
    describe_action,
    one_view_each,
    take_sample,
)
from lam.audit.settings import AuditConfig
from lam.audit.subjects import FLOOR, Reference, Subject, references, subject_of, untrained
from lam.checkpoint import LamFacts
from lam.dataset import FeatureSource
from lam.label import require_fit
from lam.mixture import Mixture
from lam.model import LatentActionModel

FEWEST_EPISODES = 5
"""As many as there are folds."""
SUPERVISED = "action_supervised"


class Bench(NamedTuple):
    """What is measured, and on what."""

    config: AuditConfig
    sample: Sample
    training: Sample | None
    subjects: list[Subject]
    """The models, the untrained floor last."""
    references: dict[str, Reference]
    lam_facts: LamFacts
    manifests: dict[str, dict[str, Any]]
    action: str
    """What A_t is; a sentence about what is missing where the store has no actions."""
    dims: list[str]
    """Names of the dimensions of A_t; empty without actions."""
    of_transitions: int
    """Held-out transitions that there are."""

    @property
    def store(self) -> Store:
        """Where the episodes are from."""
        return self.sample.store

    @property
    def has_folds(self) -> bool:
        """Whether there are enough held-out episodes for probes."""
        return len(np.unique(self.sample.episodes)) >= FEWEST_EPISODES

    @property
    def frames(self) -> Int[np.ndarray, " n"]:
        """Number of each row's first frame in its episode."""
        return self.sample.dataset.locate(self.sample.indices)[1]

    @property
    def supervised(self) -> list[str]:
        """Rows of models that saw actions."""
        return [n for n, manifest in self.manifests.items() if manifest["config"].get("objective") == SUPERVISED]

    def facts(self) -> dict[str, Any]:
        """What the numbers rest on."""
        sample = self.sample
        return {
            "store": str(self.store.path),
            "runs": {name: manifest["fingerprint"] for name, manifest in self.manifests.items()},
            "gap_s": sample.dataset.gaps[0] / self.store.info.control_hz,
            "views": list(sample.dataset.views),
            "rows": sample.size,
            "rows_by_view": np.bincount(sample.views, minlength=len(sample.dataset.views)).tolist(),
            "transitions": len(np.unique(sample.indices)),
            "of_transitions": self.of_transitions,
            "episodes": len(np.unique(sample.episodes)),
            "training_transitions": 0 if self.training is None else self.training.size,
            "training_episodes": 0 if self.training is None else len(np.unique(self.training.episodes)),
        }


def open_bench(
    config: AuditConfig,
    models: dict[str, tuple[LatentActionModel, LamFacts]],
    store: Store,
    source: FeatureSource,
    directory: Path,
) -> Bench:
    """Draw the transitions and let all models see them.

    Raises:
        ValueError: the store has no such views, dimensions or held-out episodes, or the features do not fit the models.
    """
    facts = next(iter(models.values()))[1]
    config = config.model_copy(update={"views": config.views or tuple(source.views)})
    form = (facts.one_gap_s(config.gap_s), facts.pool)
    sample = take_sample(store, source, config, *form, most=config.transitions, needs_actions=False)
    for model, _ in models.values():
        require_fit(model, sample.dataset)
    training = None
    if config.training_transitions and store.select(split="train"):
        wanted = {"split": "train", "most": config.training_transitions, "needs_actions": False}
        training = one_view_each(take_sample(store, source, config, *form, **wanted), config.seed)
    if isinstance(source, LiveFeatures):
        sample = computed_once(sample, directory)
        training = None if training is None else computed_once(training, directory)
    named = {name: model for name, (model, _) in models.items()}
    like = next(iter(named.values())).config
    named[FLOOR] = untrained(like, Mixture([sample.dataset], [1.0]), config.seed)
    action, dims = _action(config, sample)
    return Bench(
        config,
        sample,
        training,
        [subject_of(name, model, sample, training) for name, model in named.items()],
        references(sample, training, config.seed) if dims else {},
        facts,
        {name: read_manifest(path) for name, path in lam_paths(config).items()},
        action,
        dims,
        len(sample.dataset),
    )


def lam_paths(config: AuditConfig) -> dict[str, str]:
    """Run directories by name of their row; a single run is called by its objective.

    Raises:
        ValueError: none is given, or one twice.
        StageError: a run did not finish.
    """
    single = {str(read_manifest(config.lam)["config"].get("objective", "lam")): config.lam} if config.lam else {}
    if twice := set(single) & set(config.lams):
        raise ValueError(f"--lam {config.lam} would be called {twice.pop()}, as one of --lams is; give only --lams")
    if not single | config.lams:
        raise ValueError("no latent action model; give --lam RUN, or --lams '{name: RUN, ...}' for several")
    return single | config.lams


def _action(config: AuditConfig, sample: Sample) -> tuple[str, list[str]]:
    """What A_t is, and its dimensions' names."""
    store, gap = sample.store, sample.dataset.gaps[0]
    space = store.info.action_space
    if space is None:
        return "these episodes have no actions", []
    columns = action_columns(store, config)
    names = action_names(space, columns, gap, config.action)
    return describe_action(space, columns, gap, store.info.control_hz, config.action), names
