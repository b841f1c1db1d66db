"""Pretraining: from an image and an instruction, predict the latent action that followed in action-free video."""

from pathlib import Path

import torch
from torch import Tensor, nn

from core.checkpoint import TrainingState
from core.config import Config
from core.frames import FeatureCache
from core.labels import LatentLabels
from core.loading import Dataset
from core.run import fingerprint_of_file, read_manifest
from core.sampling import step_generator
from core.store import Store
from core.training import TrainingConfig, fit, make_accelerator, open_stage
from vla.checkpoint import VlaDescription, create, save
from vla.dataset import LatentDataset
from vla.model import VisionLanguageActionModel
from vla.parts import Part
from vla.prompt import prompt
from vla.tokens import LatentTokenizer


class PretrainVlaConfig(Config):
    """A run of scripts/pretrain_vla.py."""

    out: str
    """Directory of the run."""
    store: str
    """Directory of action-free episodes."""
    features: str
    """Directory of the store's feature cache (scripts/cache_features.py)."""
    labels: str
    """Directory of the store's latent labels (scripts/label_latents.py)."""
    lam: str = ""
    """Latent action model run that the labels must come from; empty: whichever made them."""
    backbone: Part = Part(name="nano")
    """Vision-language backbone: name and options."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation."""


class LatentObjective(nn.Module):
    """`forward(batch)` answers the next-token loss on latent tokens."""

    def __init__(self, model: VisionLanguageActionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch of `LatentDataset`."""
        return self.model.latent_loss(batch["features"].float(), batch["ids"], batch["codes"])


def pretrain(config: PretrainVlaConfig) -> None:
    """Run the stage: train, compare with the majority code, save the checkpoint and the manifest."""
    store = Store.open(config.store)
    cache = FeatureCache.open(config.features, store_fingerprint=store.fingerprint)
    labels = LatentLabels.load(Path(config.labels) / "labels.safetensors")
    lam_fingerprint = read_manifest(config.lam)["fingerprint"] if config.lam else None
    labels.require(store_fingerprint=store.fingerprint, lam_fingerprint=lam_fingerprint)
    accelerator = make_accelerator(config.training, Path(config.out))
    inputs = {
        "store": store.fingerprint,
        "features": cache.fingerprint,
        "labels": fingerprint_of_file(Path(config.labels) / "labels.safetensors"),
    }
    stage = open_stage(accelerator, config.out, "pretrain_vla", config, inputs)
    if stage.is_done:
        return
    texts = [prompt(record.instruction) for record in store.episodes]
    tokenizer = LatentTokenizer.trained_on(texts, labels.info.num_codes, labels.info.num_tokens)
    description = describe(config.backbone, cache, labels, tokenizer)
    torch.manual_seed(config.training.seed)
    model = create(description)
    train, held_out = (LatentDataset(store, cache, labels, tokenizer, split) for split in ("train", "held_out"))
    objective = LatentObjective(model)
    latest = fit(
        objective,
        train,
        config.training,
        stage,
        accelerator,
        validate=lambda module: validate(module, held_out, accelerator.device),
    )
    if accelerator.is_main_process:
        summary = latest | {"validation_majority": majority_accuracy(train, held_out)}
        facts = {"lam_fingerprint": labels.info.lam_fingerprint, "gap_s": labels.info.gap_s}
        stage.finish(summary, save(stage.path, model, description, facts))
        TrainingState.of(stage.path).remove()
    accelerator.wait_for_everyone()


def describe(backbone: Part, cache: FeatureCache, labels: LatentLabels, tokenizer: LatentTokenizer) -> VlaDescription:
    """The form of a model that is trained on these features and labels."""
    return VlaDescription(
        encoder=cache.encoder_config,
        encoder_fingerprint=cache.encoder_fingerprint,
        pool=cache.pool,
        feature_dim=cache.dim,
        grid=tuple(cache.grid),
        view=labels.info.views[0],
        backbone=backbone,
        tokenizer=tokenizer.to_json(),
        num_codes=labels.info.num_codes,
        num_tokens=labels.info.num_tokens,
    )


def validate(module: nn.Module, dataset: Dataset, device: torch.device) -> dict[str, float]:
    """Mean terms on up to 512 samples, the same ones each time."""
    generator = step_generator(0, 0)
    indices = generator.permutation(len(dataset))[:512]
    batch = {name: value.to(device) for name, value in dataset.batch(indices, generator).items()}
    return {name: value.item() for name, value in module(batch).items()}


def majority_accuracy(train: LatentDataset, held_out: LatentDataset) -> float:
    """Accuracy of always answering each token's most frequent training code: what prediction has to beat."""
    codes, truth = torch.from_numpy(train.codes), torch.from_numpy(held_out.codes)
    return (truth == codes.mode(0).values).float().mean().item()
