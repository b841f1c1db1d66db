"""Latent labels for a store: every transition of one view through a trained latent action model, once."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from core.config import Config
from core.device import default_device
from core.frames import FeatureCache
from core.labels import LabelsError, LabelsInfo, LatentLabels
from core.run import Stage
from core.store import Store
from lam.dataset import TransitionDataset
from lam.model import LatentActionModel
from lam.train import load_lam

LABELS = "labels.safetensors"


class LabelConfig(Config):
    """A run of scripts/label_latents.py."""

    out: str
    """Directory of the labels."""
    lam: str
    """Run directory of the latent action model."""
    store: str
    """Directory of episodes."""
    features: str
    """Directory of the store's feature cache, made with the encoder that the latent action model was trained on."""
    view: str = "front"
    """Camera whose transitions are labelled."""
    batch_size: int = 64
    """Transitions encoded together."""


def label(config: LabelConfig) -> None:
    """Run the stage: write labels.safetensors with the fingerprints of model and episodes."""
    model, facts = load_lam(config.lam)
    store = Store.open(config.store)
    if config.view not in store.info.views:
        raise LabelsError(f"{config.store} has no view {config.view!r}; its views are {list(store.info.views)}")
    cache = FeatureCache.open(
        config.features,
        store_fingerprint=store.fingerprint,
        encoder_fingerprint=facts["encoder_fingerprint"],
    )
    inputs = {"lam": facts["fingerprint"], "store": store.fingerprint, "features": cache.fingerprint}
    stage = Stage.open(config.out, "label_latents", config, inputs)
    if stage.is_done:
        return
    labels = label_store(model, store, cache, config, facts)
    labels.save(Path(config.out) / LABELS)
    used = [len(np.unique(column)) for column in labels.codes.T]
    stage.finish({"transitions": len(labels.codes), "codes_used_by_token": used})


@torch.inference_mode()
def label_store(
    model: LatentActionModel, store: Store, cache: FeatureCache, config: LabelConfig, facts: dict[str, Any]
) -> LatentLabels:
    """Labels of all transitions, train and held-out."""
    device = default_device()
    model = model.to(device)
    episodes, frames, codes = [], [], []
    for split in sorted({r.split for r in store.episodes}):
        dataset = TransitionDataset(
            store,
            cache,
            gap_s=facts["gap_s"],
            split=split,
            views=[config.view],
            views_per_sample=1,
            pool=facts["pool"],
        )
        chunks = np.array_split(np.arange(len(dataset)), max(1, len(dataset) // config.batch_size))
        for chunk in tqdm(chunks, desc=f"label {split}", unit="batch"):
            features = torch.from_numpy(dataset.features(chunk, np.zeros((len(chunk), 1), int)))[:, 0]
            codes.append(model.label(features.float().to(device)).cpu().numpy())
        episodes.append(dataset.episodes)
        frames.append(dataset.frames)
    info = LabelsInfo(
        lam_fingerprint=facts["fingerprint"],
        store_fingerprint=store.fingerprint,
        view=config.view,
        gap_s=facts["gap_s"],
        num_codes=model.config.num_codes,
        num_tokens=model.config.num_tokens,
    )
    return LatentLabels(
        info=info, episodes=np.concatenate(episodes), frames=np.concatenate(frames), codes=np.concatenate(codes)
    )
