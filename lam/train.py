"""Training of a latent action model on action-free episodes of one or more cameras."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int
from pydantic import Field, field_validator, model_validator
from torch import nn

from core.checkpoint import TrainingState
from core.run import Stage
from core.training import TrainingConfig, fit, make_accelerator, open_stage
from lam.bottlenecks.interface import codebook_health
from lam.checkpoint import LamFacts, save_lam
from lam.codebook_watch import CodebookWatch, start_codebook
from lam.config import LamConfig
from lam.dataset import DataOptions, TransitionsError
from lam.mixture import Mixture, first_rows
from lam.model import LatentActionModel
from lam.objectives.by_name import OBJECTIVES
from lam.objectives.interface import DataFacts, Objective
from lam.sources import DataConfig, Source, common_size, gap_of_all, inputs_of, open_sources, transitions

VALIDATION_SAMPLES = 512
CODE_USE_SAMPLES = 1024
WEIGHTS = ("cross_weight", "contrast_weight")
"""Keys that are attributes of those objectives that have such a term."""


class TrainLamConfig(DataConfig):
    """A run of scripts/train_lam.py."""

    out: str
    """Directory of the run."""
    objective: str = "self_cross"
    """What the latent action has to explain: a name in lam/objectives/by_name.py."""
    cross_weight: float = Field(default=1.0, gt=0)
    """self_cross, self_cross_contrast and mismatched: weight of the second reconstruction relative to the first."""
    contrast_weight: float = Field(default=0.05, gt=0)
    """contrastive_views and self_cross_contrast: weight of the contrast relative to reconstruction."""
    labelled_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training episodes whose actions objective action_supervised sees; no other sees any."""
    hidden_actions: bool = False
    """action_supervised: see also the actions of episodes that are marked as action-free; a ceiling, not a method."""
    revive_every: int = Field(default=50, ge=0)
    """Steps between replacements of codes that are not used, which are placed on encodings at the start; 0: neither."""
    gradient_checkpointing: bool = False
    """Activations are computed again when gradients need them: less memory, a third more time."""
    model: LamConfig = LamConfig()
    """Size of the model."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation."""

    @field_validator("objective")
    @classmethod
    def _objective_is_known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise ValueError(f"unknown objective {name!r}; the known ones are {', '.join(OBJECTIVES)}")
        return name

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainLamConfig":
        if self.objective == "published" and self.pairs_per_transition:
            raise ValueError("objective published sums over all pairs of views; set pairs_per_transition: 0")
        for weight in WEIGHTS:
            default = type(self).model_fields[weight].default
            if getattr(self, weight) != default and not hasattr(OBJECTIVES[self.objective], weight):
                raise ValueError(f"objective {self.objective} has no {weight}; leave it at {default}")
        if self.gradient_checkpointing and self.model.network == "perceptron":
            raise ValueError("gradient_checkpointing is for network transformer; a perceptron has nothing to forget")
        return self


def train(config: TrainLamConfig) -> None:
    """Run the stage: train, watch the codebook, save model.safetensors and the manifest."""
    sources = open_sources(config)
    accelerator = make_accelerator(config.training, Path(config.out))
    stage = open_stage(accelerator, config.out, "train_lam", config, inputs_of(sources))
    if stage.is_done:
        return
    datasets = {split: transitions_for(config, sources, split) for split in ("train", "held_out")}
    torch.manual_seed(config.training.seed)
    model = LatentActionModel(config.model, datasets["train"].dim, datasets["train"].num_patches)
    model.to(accelerator.device)
    if config.revive_every:
        start_codebook(model, datasets["train"], config.training.seed)
    objective = make_objective(config, model, sources)
    watch = CodebookWatch(
        model,
        accelerator,
        revive_every=config.revive_every,
        steps=config.training.steps,
        seed=config.training.seed,
    )
    latest = fit(
        objective,
        datasets["train"],
        config.training,
        stage,
        accelerator,
        validate=validation(datasets["held_out"], accelerator),
        after_step=watch,
    )
    if accelerator.is_main_process:
        _save(model, config, stage, latest, datasets["held_out"], next(iter(sources.values())))
    accelerator.wait_for_everyone()


def transitions_for(config: TrainLamConfig, sources: dict[str, Source], split: str) -> Mixture:
    """The transitions of a split, as the objective wants them.

    Raises:
        TransitionsError: no episode was seen by as many cameras as the objective needs.
    """
    objective = OBJECTIVES[config.objective]
    labelled_fraction = config.labelled_fraction if "actions" in objective.needs else 0.0
    options = DataOptions(
        labelled_fraction=labelled_fraction,
        hidden_actions=config.hidden_actions,
        with_proprioception="proprioception" in objective.needs,
    )
    dataset = transitions(sources, config, split, options)
    most = max(part.most_views for part in dataset.datasets)
    if most < objective.views_needed:
        raise TransitionsError(
            f"objective {config.objective} needs episodes that {objective.views_needed} cameras saw, these {split} "
            f"episodes have at most {most}; record more cameras, or choose objective: self"
        )
    return dataset


def make_objective(config: TrainLamConfig, model: LatentActionModel, sources: dict[str, Source]) -> Objective:
    """The objective around the model, its heads sized by the data."""
    kind = OBJECTIVES[config.objective]
    facts = DataFacts(
        cameras=sum(len(source.views) for source in sources.values()),
        action_dims=common_size(sources, "actions") if "actions" in kind.needs else 0,
        senses=common_size(sources, "proprioception") if "proprioception" in kind.needs else 0,
    )
    model.checkpoint_gradients(config.gradient_checkpointing)
    objective = kind(model, facts)
    for weight in WEIGHTS:
        if hasattr(objective, weight):
            setattr(objective, weight, getattr(config, weight))
    return objective


def validation(dataset: Mixture, accelerator: Accelerator) -> Callable[[nn.Module], dict[str, float]]:
    """Mean loss terms on up to 512 transitions of held-out episodes, the same ones each time."""

    def validate(objective: nn.Module) -> dict[str, float]:
        generator = np.random.default_rng(0)
        indices = some_of(dataset, VALIDATION_SAMPLES, generator)
        parts: list[dict[str, float]] = []
        for chunk in np.array_split(indices, max(1, len(indices) // 64)):
            with torch.autocast(accelerator.device.type, enabled=False):
                batch = {k: v.to(accelerator.device) for k, v in dataset.batch(chunk, generator).items()}
            parts.append({name: value.item() for name, value in objective(batch).items()})
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}

    return validate


def _save(
    model: LatentActionModel,
    config: TrainLamConfig,
    stage: Stage,
    latest: dict[str, Any],
    held_out: Mixture,
    source: Source,
) -> None:
    facts = LamFacts(
        fingerprint="",
        encoder_fingerprint=source.features.encoder_fingerprint,
        encoder=source.features.encoder_config,
        gap_s=gap_of_all(config),
        pool=config.pool,
    )
    sizes = (model.feature_dim, model.patches)
    fingerprint = save_lam(stage.path, config.model, model.state_dict(), sizes, facts)
    stage.finish(latest | code_use(model, held_out), fingerprint)
    TrainingState.of(stage.path, config.training.keep_every).remove()


@torch.inference_mode()
def code_use(model: LatentActionModel, dataset: Mixture) -> dict[str, Any]:
    """Perplexity, usage and histogram of the codes of up to 1024 held-out transitions, one camera each."""
    if model.bottleneck.num_codes is None:
        return {}
    generator = np.random.default_rng(0)
    counts = torch.zeros(model.config.num_tokens, model.bottleneck.num_codes, dtype=torch.long)
    indices = some_of(dataset, CODE_USE_SAMPLES, generator)
    for chunk in np.array_split(indices, max(1, len(indices) // 64)):
        batch = dataset.batch(chunk, generator)
        indices_of = model.label(first_rows(batch).to(next(model.parameters()).device)).cpu()
        counts += torch.nn.functional.one_hot(indices_of, model.bottleneck.num_codes).sum(0)
    return codebook_health(counts) | {"code_histogram": counts.tolist()}


def some_of(dataset: Mixture, number: int, generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    """At most `number` different samples."""
    return generator.choice(len(dataset), min(len(dataset), number), replace=False, shuffle=False)
