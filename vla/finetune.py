"""Fine-tuning: an action head on labelled demonstrations, behind a pretrained or a fresh backbone."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from core.checkpoint import TrainingState
from core.config import Config
from core.frames import FeatureCache
from core.run import read_manifest, say
from core.statistics import Statistics
from core.store import EpisodeRecord, Store
from core.training import TrainingConfig, fit, make_accelerator, open_stage
from vla.checkpoint import VlaDescription, create, load, save, start_from
from vla.dataset import DemonstrationDataset
from vla.model import VisionLanguageActionModel
from vla.parts import Part
from vla.pretrain import validate


class FinetuneError(ValueError):
    """Demonstrations that a policy cannot be fine-tuned on."""


class FinetuneVlaConfig(Config):
    """A run of scripts/finetune_vla.py."""

    out: str
    """Directory of the run."""
    pretrained: str
    """Run directory of the pretrained model."""
    fresh_weights: bool = False
    """True: same form as the pretrained model, none of its weights; the baseline without latent pretraining."""
    store: str
    """Directory of labelled episodes."""
    features: str
    """Directory of the store's feature cache (scripts/cache_features.py)."""
    demonstrations: dict[str, int] = Field(default_factory=dict)
    """How many labelled training episodes of each task to use, first ones first; empty: all of all tasks."""
    view: str = ""
    """Camera that the policy sees; empty: the one that the pretrained model saw."""
    head: Part = Part(name="l1_chunk")
    """Action head: name and options."""
    horizon: int = 8
    """Actions of a chunk."""
    proprioception: bool = True
    """Whether the head reads the robot's proprioception beside what the camera sees."""
    backbone_learning_rate: float = 0.1
    """Factor on the learning rate for a pretrained backbone; 0 freezes it. Fresh weights learn at the full rate."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation."""


class ActionObjective(nn.Module):
    """`forward(batch)` answers the head's loss."""

    def __init__(self, model: VisionLanguageActionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch of `DemonstrationDataset`."""
        predicted = self.model.act(batch["features"].float(), batch["ids"], batch["proprioception"])
        return {"loss": self.model.head.loss(predicted, batch["actions"], batch["mask"])}


def finetune(config: FinetuneVlaConfig) -> None:
    """Run the stage: train the head (and the backbone), save a checkpoint that can act by itself."""
    _, description, facts = load(config.pretrained)
    store = Store.open(config.store)
    cache = FeatureCache.open(
        config.features,
        store_fingerprint=store.fingerprint,
        encoder_fingerprint=description.encoder_fingerprint,
    )
    description = description.model_copy(update={"view": config.view or description.view})
    cache.require_view(description.view)
    records = choose_demonstrations(store, config.demonstrations, description.view)
    accelerator = make_accelerator(config.training, Path(config.out))
    inputs = {
        "store": store.fingerprint,
        "features": cache.fingerprint,
        "pretrained": read_manifest(config.pretrained)["fingerprint"],
    }
    stage = open_stage(accelerator, config.out, "finetune_vla", config, inputs)
    if stage.is_done:
        return
    statistics = measure(store, records, config.proprioception)
    description = description.model_copy(
        update={
            "head": config.head,
            "horizon": config.horizon,
            "action_dims": store.info.action_space.dims,
            "proprioception_dims": len(statistics["proprioception"].mean) if config.proprioception else 0,
        }
    )
    model = _model(config, description)
    held_out = held_out_demonstrations(store, records, description, is_main=accelerator.is_main_process)
    train, validated = _datasets(store, cache, model, (records, held_out or records), description, statistics)
    backbone_rate = 1.0 if config.fresh_weights else config.backbone_learning_rate
    latest = fit(
        ActionObjective(model),
        train,
        config.training,
        stage,
        accelerator,
        validate=lambda module: validate(module, validated, accelerator.device),
        learning_rate_scale=lambda name: backbone_rate if ".backbone." in name else 1.0,
    )
    if accelerator.is_main_process:
        facts |= _acting_facts(store, statistics, records)
        summary = latest | {"demonstrations": len(records), "frames": len(train)}
        stage.finish(summary, save(stage.path, model, description, facts))
        TrainingState.of(stage.path).remove()
    accelerator.wait_for_everyone()


def measure(store: Store, records: list[EpisodeRecord], with_proprioception: bool) -> dict[str, Statistics]:
    """Statistics of the actions and, where it is used, the proprioception of the chosen demonstrations.

    Raises:
        FinetuneError: proprioception is asked for and the store has none.
    """
    statistics = {"actions": Statistics.of(_Numbers(records, lambda record: store.actions(record.index)))}
    if with_proprioception:
        if not store.info.proprioception_dims:
            raise FinetuneError(f"{store.path} has no proprioception; set proprioception: false")
        senses = _Numbers(records, lambda record: _proprioception(store, record))
        statistics["proprioception"] = Statistics.of(senses)
    return statistics


class _Numbers(Collection[np.ndarray]):
    """Numbers of episodes, read anew each time they are gone through, so that memory holds one episode at a time."""

    def __init__(self, records: Sequence[EpisodeRecord], read: Callable[[EpisodeRecord], np.ndarray]) -> None:
        self._records, self._read = records, read

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(record) for record in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, _: object) -> bool:
        raise NotImplementedError


def _proprioception(store: Store, record: EpisodeRecord) -> Float[np.ndarray, "frames senses"]:
    values = store.proprioception(record.index)
    if values is None:
        raise FinetuneError(f"episode {record.episode_id} has no proprioception; set proprioception: false")
    return values


def _acting_facts(store: Store, statistics: dict[str, Statistics], records: list[EpisodeRecord]) -> dict[str, Any]:
    """What acting needs besides the weights."""
    return {
        "statistics": {name: values.to_json() for name, values in statistics.items()},
        "action_space": store.info.action_space.model_dump(mode="json"),
        "control_hz": store.info.control_hz,
        "instructions": sorted({record.instruction for record in records}),
    }


def _model(config: FinetuneVlaConfig, description: VlaDescription) -> VisionLanguageActionModel:
    torch.manual_seed(config.training.seed)
    model = create(description)
    if not config.fresh_weights:
        start_from(model, config.pretrained)
    return model


def _datasets(
    store: Store,
    cache: FeatureCache,
    model: VisionLanguageActionModel,
    chosen: tuple[list[EpisodeRecord], list[EpisodeRecord]],
    description: VlaDescription,
    statistics: dict[str, Statistics],
) -> list[DemonstrationDataset]:
    return [
        DemonstrationDataset(
            store,
            cache,
            model.tokenizer,
            records,
            view=description.view,
            horizon=description.horizon,
            actions=statistics["actions"],
            proprioception=statistics.get("proprioception"),
        )
        for records in chosen
    ]


def held_out_demonstrations(
    store: Store, records: list[EpisodeRecord], description: VlaDescription, *, is_main: bool = True
) -> list[EpisodeRecord]:
    """Labelled held-out episodes of the tasks of `records` that have all that the policy is to see.

    They are read once, so that training does not begin with what validation cannot end with.

    Raises:
        StoreError: one has no actions, or is damaged.
    """
    tasks = {record.task for record in records}
    found = [
        r for r in store.select(split="held_out", is_labelled=True) if r.task in tasks and description.view in r.views
    ]
    for record in found:
        store.actions(record.index)
    without = {r.index for r in found if description.proprioception_dims and store.proprioception(r.index) is None}
    if without and is_main:
        say(
            f"{len(without)} of {len(found)} held-out episodes are left out of validation, for they have no "
            f"proprioception; the first is {store.episodes[min(without)].episode_id}"
        )
    return [record for record in found if record.index not in without]


def choose_demonstrations(store: Store, wanted: dict[str, int], view: str) -> list[EpisodeRecord]:
    """The first `wanted[task]` labelled training episodes of each task that the camera saw; all, where none is named.

    Raises:
        FinetuneError: a task has fewer, the store has no actions, or not the view that the policy is to see.
    """
    if store.info.action_space is None:
        raise FinetuneError(f"{store.path} has no actions; fine-tuning needs labelled episodes")
    if view not in store.info.views:
        raise FinetuneError(f"{store.path} has no view {view!r}; --view takes one of {list(store.info.views)}")
    seen = [record for record in store.select(split="train", is_labelled=True) if view in record.views]
    if not seen:
        raise FinetuneError(f"{store.path} has no labelled training episode with the view {view}")
    chosen: list[EpisodeRecord] = [] if wanted else seen
    for task, number in wanted.items():
        found = [record for record in seen if record.task == task]
        if len(found) < number:
            raise FinetuneError(
                f"demonstrations.{task} asks for {number} labelled training episodes, {store.path} has {len(found)}; "
                f"its tasks are {sorted({record.task for record in store.episodes})}"
            )
        chosen += found[:number]
    return chosen
