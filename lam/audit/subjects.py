"""What is audited: models with what they say of each transition, the floor below them, and the references above."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from core.device import bf16_is_fast, default_device
from lam.audit.estimators.networks import predicted
from lam.audit.sample import BATCH, Sample
from lam.audit.sections.action import Latents
from lam.audit.sections.regression import components_of, fit_ridge, narrowed
from lam.codebook_watch import start_codebook
from lam.config import LamConfig
from lam.mixture import Mixture
from lam.model import LatentActionModel

COMPONENTS = 128
FLOOR, DIFFERENCE = "untrained", "frozen_features"
CEILINGS = ("inverse_dynamics_linear", "inverse_dynamics_mlp")


class Said(NamedTuple):
    """What a model says of pairs of frames."""

    encodings: Float[np.ndarray, "n tokens dim"]
    """Before the bottleneck."""
    vectors: Float[np.ndarray, "n tokens dim"]
    """Behind it: what the decoder gets."""
    codes: Int[np.ndarray, "n tokens"]


class Subject(NamedTuple):
    """A model and what it says of the held-out transitions."""

    name: str
    model: LatentActionModel
    real: Said
    still: Said
    """Of pairs in which the first frame stands twice."""
    training_codes: Int[np.ndarray, "m tokens"] | None
    """Of the transitions of training episodes, where there are any."""

    @property
    def codes(self) -> Int[np.ndarray, "n tokens"]:
        """Of the held-out transitions."""
        return self.real.codes

    @property
    def num_codes(self) -> int:
        """Values of a token."""
        assert self.model.bottleneck.num_codes is not None
        return int(self.model.bottleneck.num_codes)


@torch.inference_mode()
def say_of(model: LatentActionModel, features: Float[np.ndarray, "n 2 patches dim"]) -> Said:
    """Encodings and codes of pairs of frames, in the precision that labels are made with."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(features), BATCH):
        pairs = torch.from_numpy(np.asarray(features[start : start + BATCH])).to(device).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
            encodings = model.encode(pairs)
            quantized = model.quantize(encodings)
        assert quantized.indices is not None
        parts.append((encodings.cpu().numpy(), quantized.codes.float().cpu().numpy(), quantized.indices.cpu().numpy()))
    return Said(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def subject_of(name: str, model: LatentActionModel, sample: Sample, training: Sample | None) -> Subject:
    """A model with everything it says."""
    model = model.to(default_device()).eval()
    real, still = [], []
    for rows in chunks_of(sample):
        features = sample.features(rows)
        real.append(say_of(model, features))
        still.append(say_of(model, features[:, [0, 0]]))
    known = None
    if training is not None:
        known = np.concatenate([say_of(model, training.features(rows)).codes for rows in chunks_of(training)])
    joined = [Said(*(np.concatenate(column) for column in zip(*parts, strict=True))) for parts in (real, still)]
    return Subject(name, model, *joined, known)


def untrained(config: LamConfig, mixture: Mixture, seed: int) -> LatentActionModel:
    """A model as it is before its first step, its codes placed on its own encodings of a mixture of transitions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatentActionModel(config, mixture.dim, mixture.num_patches).eval()
    start_codebook(model, mixture, seed)
    return model


def chunks_of(sample: Sample) -> list[Int[np.ndarray, " rows"]]:
    """All rows, a batch at a time."""
    return np.array_split(np.arange(sample.size), max(1, sample.size // BATCH))


class Reference(NamedTuple):
    """Numbers that no bottleneck limits, of held-out and of training transitions."""

    held_out: Latents
    training: Float[np.ndarray, "m features"] | None


def references(sample: Sample, training: Sample | None, seed: int) -> dict[str, Reference]:
    """The change of the frozen features, and what inverse dynamics trained with actions read off both frames.

    The inverse dynamics (a ridge regression and a small network from principal components) are fitted on training
    episodes, so that their predictions are fixed functions of the features of the held-out ones.
    """
    held_first, held_change = _maps(sample)
    fitted_on = (held_first, held_change) if training is None else _maps(training)
    parts = [components_of(values, COMPONENTS, seed) for values in fitted_on]
    change = parts[1].of(held_change)
    if training is None:
        return {DIFFERENCE: Reference(Latents(change), None)}
    found = {DIFFERENCE: Reference(Latents(change), parts[1].of(fitted_on[1]))}
    inputs = np.concatenate([parts[0].of(held_first), change], axis=1)
    known = np.concatenate([part.of(values) for part, values in zip(parts, fitted_on, strict=True)], axis=1)
    varies = np.ptp(training.actions, axis=0) > 0
    if not training.actions.size or not varies.any() or len(np.unique(training.episodes)) < 5:
        return found
    targets = training.actions[:, varies].astype(np.float64)
    ridge = fit_ridge(known, targets, training.episodes, seed)
    for name, predictions in (
        (CEILINGS[0], ridge.predict(inputs)),
        (CEILINGS[1], _network(known, targets, training.episodes, inputs, seed)),
    ):
        found[name] = Reference(Latents(predictions), None)
    return found


def _network(known: np.ndarray, targets: np.ndarray, episodes: np.ndarray, inputs: np.ndarray, seed: int) -> np.ndarray:
    """Predictions for `inputs` of a network; one in five training episodes says when to stop."""
    names = np.random.default_rng(seed).permutation(np.unique(episodes))
    is_validation = np.isin(episodes, names[: max(1, len(names) // 5)])
    everything = np.concatenate([known, inputs])
    padded = np.concatenate([targets, np.zeros((len(inputs), targets.shape[1]))])
    rows = np.flatnonzero(~is_validation), np.flatnonzero(is_validation)
    return predicted(everything, padded, *rows, seed)[len(known) :]


def _maps(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Features of the first frame, and their change, one row a transition, float32."""
    first, change = [], []
    for rows in chunks_of(sample):
        features = np.asarray(sample.features(rows)).astype(np.float32).reshape(len(rows), 2, -1)
        first.append(narrowed(features[:, 0]))
        change.append(narrowed(features[:, 1] - features[:, 0]))
    return np.concatenate(first), np.concatenate(change)
