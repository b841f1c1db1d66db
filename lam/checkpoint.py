"""Trained latent action models on disk: weights, and in the header everything that using them needs."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from core.checkpoint import load_weights, read_header, read_tensors, save_tensors
from core.run import read_manifest
from core.vision import EncoderConfig
from lam.config import LamConfig
from lam.model import LatentActionModel

WEIGHTS = "model.safetensors"


class LamFacts(NamedTuple):
    """What a latent action model was trained on, as far as using it depends on that."""

    fingerprint: str
    encoder_fingerprint: str
    encoder: EncoderConfig
    """The visual tower, for frames without cached features."""
    gap_s: float | tuple[float, float]
    """Seconds between the two frames of a transition."""
    pool: int
    """Patches averaged along each side of the grid."""

    def one_gap_s(self, wanted: float | None) -> float:
        """The gap to use the model with.

        Raises:
            ValueError: it was trained on a range, and none is `wanted`.
        """
        if wanted is not None:
            return wanted
        if isinstance(self.gap_s, tuple):
            raise ValueError(f"this latent action model was trained on gaps of {list(self.gap_s)} s; choose --gap_s")
        return self.gap_s


def save_lam(
    directory: Path, config: LamConfig, weights: dict[str, Tensor], sizes: tuple[int, int], facts: LamFacts
) -> str:
    """Write the weights of a model over features of `sizes` (channels, patches); answers their fingerprint."""
    header = {
        "model": config.model_dump(),
        "feature_dim": sizes[0],
        "patches": sizes[1],
        "encoder_fingerprint": facts.encoder_fingerprint,
        "encoder": facts.encoder.model_dump(),
        "gap_s": facts.gap_s,
        "pool": facts.pool,
    }
    return save_tensors(directory / WEIGHTS, weights, header)


def load_lam(path: str | Path) -> tuple[LatentActionModel, LamFacts]:
    """A trained model in evaluation mode, and facts about it.

    Raises:
        StageError: the run did not finish.
    """
    fingerprint = read_manifest(path)["fingerprint"]
    file = Path(path) / WEIGHTS
    header = read_header(file)
    model = LatentActionModel(LamConfig(**header["model"]), header["feature_dim"], header["patches"])
    load_weights(model, read_tensors(file), str(path))
    gap_s = header["gap_s"]
    facts = LamFacts(
        fingerprint=fingerprint,
        encoder_fingerprint=header["encoder_fingerprint"],
        encoder=EncoderConfig(**header["encoder"]),
        gap_s=tuple(gap_s) if isinstance(gap_s, list) else gap_s,
        pool=header["pool"],
    )
    return model.eval(), facts
