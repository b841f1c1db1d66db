"""Pretraining: from images and an instruction, predict the latent action that followed in action-free video."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from core.checkpoint import TrainingState
from core.config import Config, ConfigError
from core.frame_cache import FramesConfig
from core.labels import LabelsError, LatentLabels
from core.loading import Batch
from core.run import fingerprint_of_file, read_manifest
from core.store import Store
from core.throughput import Work
from core.training import TrainingConfig, fit, make_accelerator, open_stage, uses_bf16
from vla.backbones.interface import Setting
from vla.checkpoint import VlaDescription, new_tokens, save
from vla.dataset import LatentDataset, Source
from vla.images import CachedFeatures, Frames, open_images
from vla.label_table import LabelTable
from vla.lora import NOTHING_TO_ADAPT, LoraConfig, add_adapters
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, Part, find
from vla.prompt import prompts_of
from vla.token_accuracy import token_accuracy
from vla.training import Rates, rate_of, validate


class PretrainVlaConfig(Config):
    """A run of scripts/pretrain_vla.py."""

    out: str
    """Directory of the run."""
    store: str
    """Directory of action-free episodes."""
    features: str = ""
    """Directory of the store's feature cache (scripts/cache_features.py), for a backbone that reads features."""
    frames: FramesConfig = FramesConfig()
    """How frames are read, for a backbone that reads frames."""
    image_size: tuple[int, int] | None = None
    """(height, width) that frames are resized to; None: as they are recorded."""
    labels: str
    """Directory of the store's latent labels (scripts/label_latents.py)."""
    lam: str = ""
    """Latent action model run that the labels must come from; empty: whichever made them."""
    views: tuple[str, ...] = ()
    """Cameras that are seen together, the labelled one first; empty: each labelled camera by itself."""
    history: int = Field(default=0, ge=0)
    """Earlier latent actions that the prompt tells of."""
    backbone: Part = Part(name="nano")
    """Vision-language backbone: name and options."""
    lora: LoraConfig | None = None
    """Adapters instead of training all of the backbone."""
    rates: Rates = Rates()
    """Learning rates of its parts."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    validation_samples: int = Field(default=512, ge=1)
    """Held-out samples that are looked at in a validation."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation."""


class LatentObjective(nn.Module):
    """`forward(batch)` answers the next-token loss on latent tokens."""

    def __init__(self, model: VisionLanguageActionModel) -> None:
        super().__init__()
        self.model = model

    def work(self, batch: Batch) -> Work:
        """How much there is to do for a batch."""
        return self.model.work(batch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of a batch of `LatentDataset`."""
        return self.model.latent_loss(batch, batch["codes"])


class Given(NamedTuple):
    """What a run was pointed at."""

    store: Store
    images: CachedFeatures | Frames
    labels: LatentLabels
    texts: list[str]
    """Prompts of the labelled episodes."""
    inputs: dict[str, str]
    """Fingerprints."""


def pretrain(config: PretrainVlaConfig) -> None:
    """Run the stage: train, compare with the majority code, save the checkpoint and the manifest."""
    given = _given(config)
    accelerator = make_accelerator(config.training, Path(config.out), skips_parameters=True)
    stage = open_stage(accelerator, config.out, "pretrain_vla", config, given.inputs)
    if stage.is_done:
        return
    description = _describe(config, given)
    kind, options = find(config.backbone, BACKBONES)
    torch.manual_seed(config.training.seed)
    model = VisionLanguageActionModel(kind.fresh(options, description.setting, given.texts))
    if config.lora is not None:
        add_adapters(model.backbone, config.lora, new_tokens(model))
    if config.gradient_checkpointing:
        model.backbone.use_checkpointing()
    train, held_out = (_dataset(config, given, model, split) for split in ("train", "held_out"))
    sizes = (accelerator.device, config.validation_samples, config.training.batch_size)
    latest = fit(
        LatentObjective(model),
        train,
        config.training,
        stage,
        accelerator,
        validate=lambda module: validate(module, held_out, *sizes),
        learning_rate_scale=rate_of(model.backbone, config.rates),
    )
    if accelerator.is_main_process:
        with torch.autocast(sizes[0].type, torch.bfloat16, enabled=uses_bf16(config.training)):
            compared = token_accuracy(model, train, held_out, *sizes)
        summary = latest | {
            "validation_majority": compared.majority,
            "validation_perplexity": math.exp(min(latest["validation_loss"], 50.0)),
            "token_accuracy": compared._asdict(),
        }
        facts = {"lam_fingerprint": given.labels.info.lam_fingerprint, "gap_s": given.labels.info.gap_s}
        stage.finish(summary, save(stage.path, model, description, facts))
        TrainingState.of(stage.path, config.training.keep_every).remove()
    accelerator.wait_for_everyone()


def _given(config: PretrainVlaConfig) -> Given:
    """Open what the run is pointed at, and refuse what does not fit together."""
    kind, _ = find(config.backbone, BACKBONES)
    if config.lora and not kind.comes_pretrained:
        raise ConfigError(NOTHING_TO_ADAPT)
    if config.lora and not (config.rates.backbone and config.rates.untrained):
        raise ConfigError("with lora, rates of 0 freeze what is to be saved; raise them, or leave lora out")
    store = Store.open(config.store)
    file = Path(config.labels) / "labels.safetensors"
    labels = LatentLabels.load(file)
    lam_fingerprint = read_manifest(config.lam)["fingerprint"] if config.lam else None
    labels.require(store_fingerprint=store.fingerprint, lam_fingerprint=lam_fingerprint)
    views = config.views or labels.info.views
    if unknown := [view for view in views if view not in store.info.views]:
        raise LabelsError(f"views names {unknown}; the cameras of {store.path} are {list(store.info.views)}")
    if config.views and config.views[0] not in labels.info.views:
        raise LabelsError(f"views begins with {views[0]!r}; the labels are of {list(labels.info.views)}")
    texts = prompts_of(store.episodes[number] for number in sorted(set(labels.episodes.tolist())))
    form = {"reads_features": kind.reads_features, "size": config.image_size}
    images = open_images(store, config.features, config.frames, views, **form)
    inputs = {"store": store.fingerprint, "labels": fingerprint_of_file(file)}
    if isinstance(images, CachedFeatures):
        inputs["features"] = images.cache.fingerprint
    return Given(store, images, labels, texts, inputs)


def _dataset(config: PretrainVlaConfig, given: Given, model: VisionLanguageActionModel, split: str) -> LatentDataset:
    table = history_table(given.store, given.labels, (config.views or given.labels.info.views)[0], config.history)
    source = Source(given.store, given.images, model.backbone.prepare, table)
    return LatentDataset(source, given.labels, split, config.views)


def history_table(store: Store, labels: LatentLabels, view: str, history: int) -> LabelTable | None:
    """Labels of a camera, as a history of so many latent actions that follow one another; None where it has none."""
    if not history:
        return None
    gap = max(1, round(labels.info.gap_s * store.info.control_hz))
    return LabelTable(labels, view, [r.length for r in store.episodes], range(history * gap, 0, -gap))


def _describe(config: PretrainVlaConfig, given: Given) -> VlaDescription:
    """The form of a model that is trained on these images and labels."""
    views = config.views or given.labels.info.views
    setting = Setting(
        num_codes=given.labels.info.num_codes,
        num_tokens=given.labels.info.num_tokens,
        views=len(config.views) or 1,
        feature_dim=given.images.form.feature_dim,
        grid=given.images.form.grid,
    )
    return VlaDescription(
        images=given.images.form,
        views=views,
        sees_one=not config.views,
        backbone=config.backbone,
        setting=setting,
        lora=config.lora,
        history=config.history,
    )
