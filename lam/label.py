"""Latent labels for a store: its transitions through a trained model, once, in shards that survive a kill."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from tqdm import tqdm

from core.config import Config
from core.device import bf16_is_fast, choose_attention_kernel, default_device
from core.labels import COLUMNS, LabelsError, LabelsInfo, LatentLabels
from core.store import Store
from core.training import open_stage
from lam.checkpoint import LamFacts, load_lam
from lam.dataset import DataOptions, FeatureSource, TransitionDataset, gaps_in_frames
from lam.model import LatentActionModel
from lam.sources import open_features

LABELS = "labels.safetensors"
SHARD_TRANSITIONS = 2048
SHUFFLE_SEED = 0


class LabelConfig(Config):
    """A run of scripts/label_latents.py."""

    out: str
    """Directory of the labels."""
    lam: str
    """Run directory of the latent action model."""
    store: str
    """Directory of episodes."""
    features: str = ""
    """Directory of the store's feature cache, made with the model's encoder; empty: that encoder runs now."""
    views: tuple[str, ...] = ()
    """Cameras whose transitions are labelled, the policy's first; empty: all of the store."""
    vote: bool = False
    """All cameras of a transition get one label: token by token the most frequent, the earlier camera's in a tie."""
    shuffle: bool = False
    """Codes change places among the transitions of a camera: no labels but their negative control."""
    gap_s: float | None = None
    """Seconds between the two frames; needed where the model was trained on a range of gaps."""
    batch_size: int = Field(default=256, ge=1)
    """Transitions encoded together."""

    @model_validator(mode="after")
    def _shuffles_one_code_a_camera(self) -> "LabelConfig":
        if self.shuffle and self.vote:
            raise ValueError("shuffle moves each camera's codes apart, vote makes them agree; choose one")
        return self


class Shard(NamedTuple):
    """Transitions that are labelled and saved together; the same whatever the number of processes."""

    number: int
    dataset: TransitionDataset
    start: int
    stop: int

    def file(self, directory: Path) -> Path:
        """Where its labels are kept until all are there."""
        return directory / f"shard-{self.number:06d}.safetensors"


def label(config: LabelConfig) -> None:
    """Run the stage: write labels.safetensors with the fingerprints of model and episodes.

    Several processes (torchrun, accelerate launch) share the shards; a killed run goes on with those that are missing.
    """
    model, facts = load_lam(config.lam)
    store = Store.open(config.store)
    source = open_features(store, config.features, facts.encoder)
    views = config.views or source.views
    if unknown := set(views) - set(source.views):
        raise LabelsError(f"{config.store} has no views {sorted(unknown)} with features; it has {list(source.views)}")
    if source.encoder_fingerprint != facts.encoder_fingerprint:
        raise LabelsError(
            f"features in {config.features or 'memory'} come from encoder {source.encoder_fingerprint}, the latent "
            f"action model from {facts.encoder_fingerprint}; cache them again with the model's encoder: {facts.encoder}"
        )
    processes = start_processes()
    inputs = {"lam": facts.fingerprint, "store": store.fingerprint, "features": source.fingerprint}
    stage = open_stage(processes, config.out, "label_latents", config, inputs)
    if stage.is_done:
        return
    shards = list(shards_of(store, source, views, facts, config))
    if not shards:
        raise LabelsError(
            f"no episode of {config.store} that {list(views)} saw is longer than {facts.one_gap_s(config.gap_s)} s"
        )
    require_fit(model, shards[0].dataset)
    info = labels_info(model, facts, store, views, config)
    label_shards(model, shards, stage.path, info, config.batch_size, processes)
    processes.wait_for_everyone()
    if processes.is_main_process:
        labels = gathered(shards, stage.path)
        if config.shuffle:
            labels = shuffled(labels)
        labels.save(stage.path / LABELS)
        for shard in shards:
            shard.file(stage.path).unlink()
        used = [len(np.unique(column)) for column in labels.codes.T]
        stage.finish({"labels": len(labels.codes), "is_shuffled": config.shuffle, "codes_used_by_token": used})
    processes.wait_for_everyone()


def require_fit(model: LatentActionModel, dataset: TransitionDataset) -> None:
    """Refuse features of another form than those the model was trained on.

    Raises:
        LabelsError: patches or channels differ.
    """
    given, wanted = (dataset.num_patches, dataset.source.dim), (model.patches, model.feature_dim)
    if given != wanted:
        raise LabelsError(
            f"the features of {dataset.store.path} have (patches, channels) {given} after pooling by "
            f"{dataset.options.pool}, the latent action model takes {wanted}; cache them with the same encoder, image "
            "size and pool as those that it was trained on"
        )


def start_processes() -> PartialState:
    """The processes that a launcher started, this one alone without a launcher."""
    on_cpu = default_device().type == "cpu"
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=on_cpu, **({"backend": "gloo"} if on_cpu and is_launched else {}))


def shards_of(
    store: Store, source: FeatureSource, views: tuple[str, ...], facts: LamFacts, config: LabelConfig
) -> Iterator[Shard]:
    """All transitions of all splits."""
    number = 0
    gap_s, options = facts.one_gap_s(config.gap_s), DataOptions(pool=facts.pool)
    shortest = gaps_in_frames(gap_s, store.info.control_hz)[0]
    seen = [r for r in store.episodes if set(r.views) & set(views) and r.length > shortest]
    for split in sorted({record.split for record in seen}):
        dataset = TransitionDataset(store, source, gap_s=gap_s, split=split, views=views, options=options)
        for start in range(0, len(dataset), SHARD_TRANSITIONS):
            yield Shard(number, dataset, start, min(start + SHARD_TRANSITIONS, len(dataset)))
            number += 1


def label_shards(
    model: LatentActionModel,
    shards: list[Shard],
    directory: Path,
    info: LabelsInfo,
    batch_size: int,
    processes: PartialState,
) -> None:
    """Label this process's part of the shards that are not on disk yet."""
    model = model.to(processes.device)
    choose_attention_kernel(processes.device)
    missing = [shard for shard in shards if not shard.file(directory).exists()]
    mine = missing[processes.process_index :: processes.num_processes]
    transitions = sum(shard.stop - shard.start for shard in mine)
    processes.wait_for_everyone()
    with tqdm(
        total=transitions, desc="label", unit="transition", disable=not processes.is_main_process, mininterval=1.0
    ) as bar:
        for shard in mine:
            label_shard(model, shard, info, batch_size).save(shard.file(directory))
            bar.update(shard.stop - shard.start)


def label_shard(model: LatentActionModel, shard: Shard, info: LabelsInfo, batch_size: int) -> LatentLabels:
    """Labels of the transitions of a shard, each as often as cameras saw it."""
    dataset, numbers = shard.dataset, np.arange(shard.start, shard.stop)
    available = [dataset.available(int(number)) for number in numbers]
    indices = np.repeat(numbers, [len(cameras) for cameras in available])
    views = np.concatenate(available)
    parts = []
    for start in range(0, len(views), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(codes_of(model, dataset.seen_by(indices[rows], views[rows])))
    codes = np.concatenate(parts)
    if info.is_vote:
        codes = majority(codes, indices - shard.start, info.num_codes)
    episodes, frames = dataset.locate(indices)
    columns = {"episodes": episodes, "frames": frames, "views": views, "codes": codes}
    return LatentLabels(info=info, **{name: values.astype(np.int32) for name, values in columns.items()})


@torch.inference_mode()
def codes_of(model: LatentActionModel, features: Float[np.ndarray, "n 2 patches dim"]) -> Int[np.ndarray, "n tokens"]:
    """Code indices of transitions, in the precision that is fast where the model is."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
        return model.label(torch.from_numpy(features).to(device).float()).cpu().numpy()


def majority(
    codes: Int[np.ndarray, "n tokens"], transition: Int[np.ndarray, " n"], num_codes: int
) -> Int[np.ndarray, "n tokens"]:
    """Each row's codes replaced by those that most rows of its transition have; the earliest row's in a tie."""
    transitions, tokens = int(transition[-1]) + 1, np.arange(codes.shape[1])
    votes = np.zeros((transitions, codes.shape[1], num_codes))
    earliest = np.arange(len(codes))[:, None] / (len(codes) + 1)
    np.add.at(votes, (transition[:, None], tokens, codes), 1.0)
    first = np.full(votes.shape, 1.0)
    np.minimum.at(first, (transition[:, None], tokens, codes), np.broadcast_to(earliest, codes.shape))
    return (votes - first).argmax(-1)[transition]


def labels_info(
    model: LatentActionModel, facts: LamFacts, store: Store, views: tuple[str, ...], config: LabelConfig
) -> LabelsInfo:
    """What the labels come from and mean."""
    return LabelsInfo(
        lam_fingerprint=facts.fingerprint,
        store_fingerprint=store.fingerprint,
        views=views,
        is_vote=config.vote,
        gap_s=facts.one_gap_s(config.gap_s),
        num_codes=model.config.num_codes,
        num_tokens=model.config.num_tokens,
    )


def gathered(shards: list[Shard], directory: Path) -> LatentLabels:
    """The labels of all shards, in order."""
    parts = [LatentLabels.load(shard.file(directory)) for shard in shards]
    return LatentLabels(
        info=parts[0].info, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    )


def shuffled(labels: LatentLabels) -> LatentLabels:
    """The negative control: each camera's rows of codes in other places, always the same ones.

    Whole rows move, so that codes stay as frequent, and the tokens of a row as dependent, as they were. They move among
    all transitions of a camera, not episode by episode: whole episodes exchanged would leave each code where it belongs
    in the course of an episode (approach, push), which a picture shows. `info.lam_fingerprint` ends in `-shuffled`, so
    that whoever expects labels of that model refuses these.
    """
    generator, codes = np.random.default_rng(SHUFFLE_SEED), labels.codes.copy()
    for view in np.unique(labels.views):
        rows = np.flatnonzero(labels.views == view)
        codes[rows] = labels.codes[generator.permutation(rows)]
    info = replace(labels.info, lam_fingerprint=f"{labels.info.lam_fingerprint}-shuffled")
    return replace(labels, info=info, codes=codes)
