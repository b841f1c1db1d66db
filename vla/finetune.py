"""Fine-tuning: an action head on labelled demonstrations, behind a pretrained, a released or a fresh backbone."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from core.checkpoint import TrainingState
from core.config import Config
from core.frame_cache import FramesConfig
from core.labels import LabelsError, LatentLabels
from core.loading import Batch
from core.run import fingerprint_of_file, say
from core.statistics import Statistics
from core.store import EpisodeRecord, Store
from core.throughput import Work
from core.training import TrainingConfig, fit, make_accelerator, open_stage
from vla.checkpoint import VlaDescription, make_head, new_tokens, save
from vla.dataset import DemonstrationDataset, Source
from vla.demonstrations import (
    FinetuneError,
    choose_demonstrations,
    held_out_demonstrations,
    held_out_of,
    measure,
    warnings_of,
)
from vla.heads.interface import TokenHead
from vla.images import CachedFeatures, Frames, open_images
from vla.label_table import LabelTable
from vla.lora import NOTHING_TO_ADAPT, LoraConfig, add_adapters
from vla.model import VisionLanguageActionModel
from vla.parts import HEADS, Part, find
from vla.pretrain import history_table
from vla.prompt import prompts_of
from vla.sources import Start, open_start, start_backbone
from vla.training import Rates, rate_of, validate

FIT_SAMPLES = 20_000
"""Chunks that a head's words are learned from."""


class PolicyConfig(Config):
    """What is fine-tuned."""

    path: str
    """Run directory of a pretrained model, folder or hub name of a released one, or of any vision-language model."""
    fresh_weights: bool = False
    """True: the same form without what pretraining on latent actions taught; the baseline."""
    num_codes: int = Field(default=16, ge=0)
    """Of a released model: values of a latent code index."""
    num_tokens: int = Field(default=4, ge=0)
    """Of a released model: latent tokens of an action; 0: it knows none."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of a released model: options of its backbone, such as knows_latents of prismatic, image_size of hub."""


class DemonstrationsConfig(Config):
    """What it is fine-tuned on."""

    path: str
    """Directory of labelled episodes."""
    features: str = ""
    """Directory of the store's feature cache (scripts/cache_features.py), for a backbone that reads features."""
    frames: FramesConfig = FramesConfig()
    """How frames are read, for a backbone that reads frames."""
    image_size: tuple[int, int] | None = None
    """(height, width) that frames are resized to; None: as the pretrained model was shown them."""
    demonstrations: dict[str, int] = Field(default_factory=dict)
    """How many labelled training episodes of each task to use, first ones first; empty: all of all tasks."""
    views: tuple[str, ...] = ()
    """Cameras that the policy sees, in this order; empty: those that the pretrained model saw."""
    labels: str = ""
    """Directory of the store's latent labels: these are learned beside the actions, and tell the history."""


class FinetuneVlaConfig(Config):
    """A run of scripts/finetune_vla.py."""

    out: str
    """Directory of the run."""
    policy: PolicyConfig
    """What is fine-tuned."""
    data: DemonstrationsConfig
    """What it is fine-tuned on."""
    head: Part = Part(name="l1_chunk")
    """Action head: name and options."""
    horizon: int = Field(default=8, ge=1)
    """Actions of a chunk."""
    proprioception: bool = True
    """Whether the head reads the robot's proprioception beside what the cameras see."""
    latent_weight: float = 1.0
    """Weight of the next-token loss on labelled latent actions, where data.labels are given."""
    lora: LoraConfig | None = None
    """Adapters instead of training all of the backbone."""
    rates: Rates = Rates(backbone=0.1)
    """Learning rates by part; a backbone with fresh weights of its own learns at the full rate."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    validation_samples: int = Field(default=512, ge=1)
    """Held-out samples that are looked at in a validation."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation."""


class ActionObjective(nn.Module):
    """`forward(batch)` answers the head's loss, and that of labelled latent actions."""

    def __init__(self, model: VisionLanguageActionModel, latent_weight: float) -> None:
        super().__init__()
        self.model, self.latent_weight = model, latent_weight

    def work(self, batch: Batch) -> Work:
        """How much there is to do for a batch."""
        return self.model.work(batch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of a batch of `DemonstrationDataset`."""
        terms = self.model.action_loss(
            batch, batch["senses"], batch["actions"], batch["valid"], batch.get("codes"), batch.get("labelled")
        )
        if "latent_loss" not in terms:
            return terms
        whole = terms["loss"] + self.latent_weight * terms["latent_loss"]
        return terms | {"action_loss": terms["loss"].detach(), "loss": whole}


class Given(NamedTuple):
    """What a run was pointed at."""

    start: Start
    store: Store
    images: CachedFeatures | Frames
    views: tuple[str, ...]
    records: list[EpisodeRecord]
    """Demonstrations."""
    labels: LatentLabels | None
    inputs: dict[str, str]
    """Fingerprints."""


def finetune(config: FinetuneVlaConfig) -> None:
    """Run the stage: train the head (and the backbone), save a checkpoint that can act by itself."""
    given = _given(config)
    accelerator = make_accelerator(config.training, Path(config.out), skips_parameters=True)
    stage = open_stage(accelerator, config.out, "finetune_vla", config, given.inputs)
    if stage.is_done:
        return
    reads_senses = config.proprioception and find(config.head, HEADS).kind.reads_senses
    statistics = measure(given.store, given.records, reads_senses)
    if accelerator.is_main_process:
        for warning in _warnings(config, given, statistics):
            say(f"warning: {warning}")
    description = _describe(config, given, statistics)
    torch.manual_seed(config.training.seed)
    backbone = start_backbone(given.start, config.policy.fresh_weights, _texts(given))
    if config.gradient_checkpointing:
        backbone.use_checkpointing()
    checks = {"with_proprioception": reads_senses, "is_main": accelerator.is_main_process}
    held_out = held_out_demonstrations(given.store, given.records, given.views, **checks)
    if not held_out and accelerator.is_main_process:
        say("warning: nothing is held out, so validation is of training episodes; see scripts/split_episodes.py")
    sets = [
        _dataset(config, given, description, backbone, statistics, records)
        for records in (given.records, held_out or given.records)
    ]
    model = VisionLanguageActionModel(backbone, make_head(description, backbone))
    if isinstance(model.head, TokenHead):
        model.head.fit(_chunks(sets[0]))
        model.head.first_id = backbone.add_tokens(model.head.names)[0]
    if config.lora is not None:
        add_adapters(backbone, config.lora, new_tokens(model))
    rates = config.rates
    if config.policy.fresh_weights and not backbone.comes_pretrained:
        rates = rates.model_copy(update={"backbone": 1.0})
    sizes = (accelerator.device, config.validation_samples, config.training.batch_size)
    latest = fit(
        ActionObjective(model, config.latent_weight),
        sets[0],
        config.training,
        stage,
        accelerator,
        validate=lambda module: validate(module, sets[1], *sizes),
        learning_rate_scale=rate_of(backbone, rates),
    )
    if accelerator.is_main_process:
        summary = latest | {"demonstrations": len(given.records), "frames": len(sets[0])}
        facts = given.start.facts | _acting_facts(given, statistics)
        stage.finish(summary, save(stage.path, model, description, facts))
        TrainingState.of(stage.path, config.training.keep_every).remove()
    accelerator.wait_for_everyone()


def _given(config: FinetuneVlaConfig) -> Given:
    """Open what the run is pointed at, and refuse what does not fit together."""
    find(config.head, HEADS)
    data, policy = config.data, config.policy
    store = Store.open(data.path)
    start = open_start(policy.path, policy.num_codes, policy.num_tokens, data.views, policy.options)
    if policy.fresh_weights and start.base is None:
        raise FinetuneError("policy.fresh_weights leaves out latent pretraining of ours; of a released model it cannot")
    _require_rates(config)
    if config.lora and (start.base is None or policy.fresh_weights) and not start.kind.comes_pretrained:
        raise FinetuneError(NOTHING_TO_ADAPT)
    views = data.views or start.description.shown
    if len(views) != start.description.setting.views:
        raise FinetuneError(
            f"data.views names {len(views)} cameras, the model was trained on {start.description.setting.views}: "
            f"{list(start.description.views)}"
        )
    records = choose_demonstrations(store, data.demonstrations, views)
    prompts_of([*records, *held_out_of(store, records, views)])
    form = {"reads_features": start.kind.reads_features, "form": start.description.images, "size": data.image_size}
    images = open_images(store, data.features, data.frames, views, **form)
    inputs = {"store": store.fingerprint, "policy": start.fingerprint}
    if isinstance(images, CachedFeatures):
        inputs["features"] = images.cache.fingerprint
    labels = None
    if data.labels:
        file = Path(data.labels) / "labels.safetensors"
        labels = LatentLabels.load(file)
        labels.require(store_fingerprint=store.fingerprint, lam_fingerprint=start.facts.get("lam_fingerprint"))
        _require_labels(labels, start, views[0])
        inputs["labels"] = fingerprint_of_file(file)
    elif start.description.history:
        raise FinetuneError("the model reads a history of latent actions; set data.labels to labels of these episodes")
    return Given(start, store, images, views, records, labels, inputs)


def _require_rates(config: FinetuneVlaConfig) -> None:
    if config.lora and not (config.rates.backbone and config.rates.untrained and config.rates.head):
        raise FinetuneError("with lora, rates of 0 freeze what is to be saved; raise them, or leave lora out")


def _require_labels(labels: LatentLabels, start: Start, view: str) -> None:
    setting, info = start.description.setting, labels.info
    if (info.num_codes, info.num_tokens) != (setting.num_codes, setting.num_tokens):
        raise LabelsError(
            f"the labels have {info.num_tokens} tokens of {info.num_codes} codes, the model {setting.num_tokens} of "
            f"{setting.num_codes}; label the store with the latent action model that it was pretrained with"
        )
    if view not in info.views:
        raise LabelsError(f"the labels are of the cameras {list(info.views)}, the policy's first is {view!r}")


def _describe(config: FinetuneVlaConfig, given: Given, statistics: dict[str, Statistics]) -> VlaDescription:
    """The form of the policy."""
    senses = statistics.get("proprioception")
    base = given.start.base
    return given.start.description.model_copy(
        update={
            "images": given.images.form,
            "views": given.views,
            "sees_one": False,
            "lora": config.lora,
            "base": str(base) if config.lora and base and not config.policy.fresh_weights else "",
            "head": config.head,
            "horizon": config.horizon,
            "action_dims": given.store.info.action_space.dims,
            "proprioception_dims": len(senses.mean) if senses else 0,
        }
    )


def _warnings(config: FinetuneVlaConfig, given: Given, statistics: dict[str, Statistics]) -> list[str]:
    said = warnings_of(statistics, given.store)
    if config.proprioception and "proprioception" not in statistics:
        said.append(f"the head {config.head.name} reads no proprioception; the policy will not see any")
    start = given.start.description
    if given.start.base is None and start.setting.num_tokens and not given.labels and not _knows_latents(start):
        said.append(
            f"nothing taught this model latent actions, and {start.setting.num_tokens} of their tokens stand before "
            "its actions; set policy.num_tokens to 0, or give data.labels, or, if it was pretrained on them, set "
            "policy.options to {knows_latents: true}"
        )
    if given.labels and given.start.description.history:
        steps = max(1, round(given.labels.info.gap_s * given.store.info.control_hz))
        said.append(f"latent actions of the history are {steps} control steps apart; execute as many of each chunk")
    return said


def _knows_latents(description: VlaDescription) -> bool:
    return bool(description.backbone.options.get("knows_latents"))


def _texts(given: Given) -> list[str]:
    return prompts_of(given.records)


def _dataset(
    config: FinetuneVlaConfig,
    given: Given,
    description: VlaDescription,
    backbone: Any,
    statistics: dict[str, Statistics],
    records: list[EpisodeRecord],
) -> DemonstrationDataset:
    labels, lengths = given.labels, [record.length for record in given.store.episodes]
    history = history_table(given.store, labels, given.views[0], description.history) if labels else None
    return DemonstrationDataset(
        Source(given.store, given.images, backbone.prepare, history),
        records,
        views=given.views,
        horizon=description.horizon,
        actions=statistics["actions"],
        is_bounded=find(config.head, HEADS).kind.is_bounded,
        proprioception=statistics.get("proprioception"),
        labels=LabelTable(labels, given.views[0], lengths) if labels else None,
    )


def _chunks(dataset: DemonstrationDataset) -> np.ndarray:
    """Whole chunks of normalised actions, spread over the demonstrations."""
    places = np.unique(np.linspace(0, len(dataset) - 1, min(FIT_SAMPLES, len(dataset))).astype(int))
    values = dataset.values(*dataset.locate(places))
    whole = values["actions"][values["valid"].all(1)]
    return (whole if len(whole) else values["actions"]).numpy()


def _acting_facts(given: Given, statistics: dict[str, Statistics]) -> dict[str, Any]:
    """What acting needs besides the weights."""
    return {
        "statistics": {name: values.to_json() for name, values in statistics.items()},
        "action_space": given.store.info.action_space.model_dump(mode="json"),
        "control_hz": given.store.info.control_hz,
        "camera_sizes": {view: given.store.info.views[view] for view in given.views},
        "instructions": sorted({record.instruction for record in given.records}),
    }
