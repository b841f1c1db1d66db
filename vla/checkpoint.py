"""A policy checkpoint: one directory, one file of weights, and in its header all that acting needs."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.checkpoint import load_weights, read_header, read_tensors, save_tensors
from core.config import Config
from core.vision import EncoderConfig
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, HEADS, Part, build
from vla.tokens import LatentTokenizer

WEIGHTS = "model.safetensors"


class VlaDescription(Config):
    """The form of a model; with its weights, all that is needed to build it again."""

    encoder: EncoderConfig
    """Frozen visual tower."""
    encoder_fingerprint: str
    """Weights of that tower."""
    pool: int
    """Patches averaged along each side before the backbone."""
    feature_dim: int
    """Channels of a patch."""
    grid: tuple[int, int]
    """Rows and columns of patches that enter the backbone."""
    view: str
    """Camera that it was trained on."""
    backbone: Part
    """Vision-language backbone."""
    tokenizer: str
    """The tokenizer, as JSON."""
    num_codes: int
    """Values of a latent code index."""
    num_tokens: int
    """Latent tokens a transition."""
    head: Part | None = None
    """Action head; None before fine-tuning."""
    horizon: int = 0
    """Actions of a chunk."""
    action_dims: int = 0
    """Numbers of an action."""
    proprioception_dims: int = 0
    """Numbers of the proprioception that the head reads; 0: it sees none."""


def create(description: VlaDescription) -> VisionLanguageActionModel:
    """The model with fresh weights."""
    tokenizer = LatentTokenizer.from_json(description.tokenizer, description.num_codes, description.num_tokens)
    backbone = build(description.backbone, BACKBONES, description.feature_dim, description.grid, tokenizer.size)
    head: nn.Module | None = None
    if description.head is not None:
        positions = backbone.image_tokens + description.num_tokens
        sizes = (description.horizon, description.action_dims, description.proprioception_dims)
        head = build(description.head, HEADS, backbone.width, positions, *sizes)
    return VisionLanguageActionModel(backbone, tokenizer, head)


def save(directory: Path, model: VisionLanguageActionModel, description: VlaDescription, facts: dict[str, Any]) -> str:
    """Write the checkpoint; answers its fingerprint."""
    header = {"description": description.model_dump(mode="json"), **facts}
    return save_tensors(directory / WEIGHTS, dict(model.state_dict()), header)


def load(directory: str | Path) -> tuple[VisionLanguageActionModel, VlaDescription, dict[str, Any]]:
    """The model, its form, and the further facts of its header.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit its own description.
    """
    path = Path(directory) / WEIGHTS
    header = read_header(path)
    description = VlaDescription(**header.pop("description"))
    model = create(description)
    load_weights(model, read_tensors(path), str(path))
    return model.eval(), description, header


def start_from(model: VisionLanguageActionModel, directory: str | Path) -> None:
    """Copy the backbone's weights of a pretrained checkpoint into `model`."""
    tensors = read_tensors(Path(directory) / WEIGHTS)
    own = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    load_weights(model.backbone, own, str(directory))
    assert all(torch.isfinite(t).all() for t in own.values())
