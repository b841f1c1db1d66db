"""Training of a latent action model on cached features of action-free multi-view episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import model_validator
from torch import Tensor, nn

from core.checkpoint import TrainingState, load_weights, read_header, read_tensors, save_tensors
from core.config import Config
from core.frames import FeatureCache
from core.run import Stage, read_manifest, say
from core.sampling import step_generator
from core.store import Store
from core.training import TrainingConfig, fit, make_accelerator, open_stage
from lam.dataset import TransitionDataset
from lam.model import LamConfig, LatentActionModel
from lam.objectives.by_name import OBJECTIVES, VIEWS_NEEDED
from lam.objectives.interface import Transitions
from lam.quantizers import codebook_health

WEIGHTS = "model.safetensors"
COLLAPSED_PERPLEXITY = 2.0
COLLAPSED_CHECKS = 4
COLLAPSED = (
    "train_lam: WARNING: the codebook has collapsed, perplexity {perplexity:.2f} of {codes} codes at step {step} and "
    "the {before} checks before; try model.normalise_encodings: true, model.codebook: per_token, a smaller "
    "training.learning_rate, or a smaller revive_every ({every} now)"
)


class TrainLamConfig(Config):
    """A run of scripts/train_lam.py."""

    out: str
    """Directory of the run."""
    store: str
    """Directory of episodes."""
    features: str
    """Directory of the store's feature cache (scripts/cache_features.py)."""
    views: tuple[str, ...] = ()
    """Cameras to learn from; empty: all of the store."""
    views_per_sample: int = 2
    """Synchronised views of a transition that are seen together."""
    gap_s: float = 0.4
    """Seconds between the two frames of a transition."""
    pool: int = 1
    """Patches averaged along each side of the grid before they reach the model; 2 makes it four times cheaper."""
    objective: str = "self_cross"
    """What the latent action has to explain: a name in lam/objectives/by_name.py."""
    revive_every: int = 50
    """Steps between replacements of codes that are not used; 0: never."""
    model: LamConfig = LamConfig()
    """Size of the model."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation."""

    @model_validator(mode="after")
    def _objective_has_views(self) -> "TrainLamConfig":
        if self.objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {self.objective!r}; the known ones are {', '.join(OBJECTIVES)}")
        needed = VIEWS_NEEDED.get(self.objective, 1)
        if self.views_per_sample < needed:
            raise ValueError(
                f"objective {self.objective} needs views_per_sample of {needed} or more, got {self.views_per_sample}; "
                "record more cameras or use objective: self"
            )
        return self


class ObjectiveModule(nn.Module):
    """A latent action model under an objective: `forward(batch)` answers the loss terms."""

    def __init__(self, model: LatentActionModel, objective: str, action_dims: int) -> None:
        super().__init__()
        self.model = model
        self.objective = OBJECTIVES[objective]
        if objective == "action_supervised":
            model.action_probe = nn.Linear(model.config.num_tokens * model.config.code_dim, action_dims)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch of `TransitionDataset`."""
        return self.objective(self.model, Transitions(batch["features"].float(), batch.get("actions")))


def train(config: TrainLamConfig) -> None:
    """Run the stage: train, watch the codebook, save model.safetensors and the manifest."""
    store = Store.open(config.store)
    views = config.views or tuple(store.info.views)
    cache = FeatureCache.open(config.features, store_fingerprint=store.fingerprint)
    accelerator = make_accelerator(config.training, Path(config.out))
    inputs = {"store": store.fingerprint, "features": cache.fingerprint}
    stage = open_stage(accelerator, config.out, "train_lam", config, inputs)
    if stage.is_done:
        return
    datasets = {
        split: TransitionDataset(
            store,
            cache,
            gap_s=config.gap_s,
            split=split,
            views=views,
            views_per_sample=config.views_per_sample,
            pool=config.pool,
            with_actions=config.objective == "action_supervised",
        )
        for split in ("train", "held_out")
    }
    torch.manual_seed(config.training.seed)
    action_dims = store.info.action_space.dims if store.info.action_space else 0
    model = LatentActionModel(config.model, cache.dim, datasets["train"].num_patches)
    start_codebook(model, datasets["train"], config.training.seed)
    module = ObjectiveModule(model, config.objective, action_dims)
    watch = CodebookWatch(model, datasets["train"], config, accelerator)
    latest = fit(
        module,
        datasets["train"],
        config.training,
        stage,
        accelerator,
        validate=lambda m: validate(m, datasets["held_out"], accelerator),
        after_step=watch,
    )
    if accelerator.is_main_process:
        _save(model, config, stage, latest, datasets["held_out"], cache.encoder_fingerprint)
    accelerator.wait_for_everyone()


class CodebookWatch:
    """After each step: code use to the log; every now and then unused codes are replaced, alike on all processes."""

    def __init__(
        self, model: LatentActionModel, dataset: TransitionDataset, config: TrainLamConfig, accelerator: Accelerator
    ) -> None:
        self.model, self.dataset, self.config, self.accelerator = model, dataset, config, accelerator
        self.low_checks = 0

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Codebook metrics on the steps that replace codes, nothing on the others."""
        every = self.config.revive_every
        if not every or (step + 1) % every:
            return {}
        quantizer = self.model.quantizer
        counts = self.accelerator.reduce(quantizer.counts.clone(), reduction="sum")
        quantizer.counts.copy_(counts)
        health = codebook_health(counts)
        self._warn_of_collapse(health["perplexity"], step)
        if step + 1 <= 0.8 * self.config.training.steps:
            seed = self.config.training.seed
            encodings = sample_encodings(self.model, self.dataset, seed, step).to(self.accelerator.device)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            health["revived"] = float(quantizer.revive(encodings, generator))
        else:
            quantizer.counts.zero_()
        return health

    def _warn_of_collapse(self, perplexity: float, step: int) -> None:
        """Say so once, when hardly more than one code was used for several checks in a row."""
        self.low_checks = self.low_checks + 1 if perplexity < COLLAPSED_PERPLEXITY else 0
        if self.low_checks == COLLAPSED_CHECKS and self.accelerator.is_main_process:
            facts = {
                "codes": self.config.model.num_codes,
                "before": COLLAPSED_CHECKS - 1,
                "every": self.config.revive_every,
            }
            say(COLLAPSED.format(perplexity=perplexity, step=step + 1, **facts))


@torch.no_grad()
def sample_encodings(model: LatentActionModel, dataset: TransitionDataset, seed: int, step: int) -> Tensor:
    """Encodings of 128 transitions, the same on every process."""
    generator = step_generator(seed, step, rank=2**20)
    indices = generator.integers(0, len(dataset), 128)
    features = dataset.batch(indices, generator)["features"][:, 0].float()
    return model.encode(features.to(next(model.parameters()).device))


def start_codebook(model: LatentActionModel, dataset: TransitionDataset, seed: int) -> None:
    """Place the codes on encodings of real transitions, so that all are in use from the first step."""
    with torch.no_grad():
        model.quantizer.revive(sample_encodings(model, dataset, seed, 0), torch.Generator().manual_seed(seed))


def validate(module: nn.Module, dataset: TransitionDataset, accelerator: Accelerator) -> dict[str, float]:
    """Mean loss terms on up to 512 held-out transitions, the same ones each time."""
    generator = np.random.default_rng(0)
    indices = generator.permutation(len(dataset))[:512]
    parts: list[dict[str, float]] = []
    for chunk in np.array_split(indices, max(1, len(indices) // 64)):
        batch = {k: v.to(accelerator.device) for k, v in dataset.batch(chunk, generator).items()}
        parts.append({name: value.item() for name, value in module(batch).items()})
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def load_lam(path: str | Path) -> tuple[LatentActionModel, dict[str, Any]]:
    """A trained model in evaluation mode, and facts about it: fingerprint, encoder_fingerprint, gap_s, pool.

    Raises:
        StageError: the run did not finish.
    """
    fingerprint = read_manifest(path)["fingerprint"]
    header = read_header(Path(path) / WEIGHTS)
    model = LatentActionModel(LamConfig(**header["model"]), header["feature_dim"], header["patches"])
    load_weights(model, read_tensors(Path(path) / WEIGHTS), str(path))
    return model.eval(), header | {"fingerprint": fingerprint}


def _save(
    model: LatentActionModel,
    config: TrainLamConfig,
    stage: Stage,
    latest: dict[str, float],
    dataset: TransitionDataset,
    encoder_fingerprint: str,
) -> None:
    counts = torch.zeros(config.model.num_tokens, config.model.num_codes)
    for chunk in np.array_split(np.arange(len(dataset)), max(1, len(dataset) // 64)):
        views = np.array([[first_view(dataset, i)] for i in chunk])
        features = torch.from_numpy(dataset.features(chunk, views))[:, 0].float()
        indices = model.label(features.to(next(model.parameters()).device)).cpu()
        counts += torch.nn.functional.one_hot(indices, config.model.num_codes).sum(0)
    tensors = {name: t for name, t in model.state_dict().items() if not name.startswith("action_probe")}
    header = {
        "model": config.model.model_dump(),
        "feature_dim": model.feature_dim,
        "patches": model.patches,
        "encoder_fingerprint": encoder_fingerprint,
        "gap_s": config.gap_s,
        "pool": config.pool,
    }
    fingerprint = save_tensors(stage.path / WEIGHTS, tensors, header)
    summary = latest | codebook_health(counts) | {"code_histogram": counts.int().tolist()}
    stage.finish(summary, fingerprint)
    TrainingState.of(stage.path).remove()


def first_view(dataset: TransitionDataset, index: int) -> int:
    """The first view that the episode of a sample has."""
    return dataset.available[int(dataset.episodes[index])][0]
