"""What pretraining and fine-tuning share: rates of learning by part, and validation."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import nn

from core.config import Config
from core.loading import Dataset
from core.sampling import step_generator
from vla.backbones.interface import Backbone


class Rates(Config):
    """Factors on the learning rate by part; 0 freezes one."""

    backbone: float = Field(default=1.0, ge=0)
    """Everything but tower, untrained parts and head; adapters where there are some."""
    tower: float = Field(default=0.0, ge=0)
    """Visual tower, where it is part of the backbone; adapters in it learn as the others do."""
    untrained: float = Field(default=1.0, ge=0)
    """Parts of the backbone that come without pretrained weights, such as a new projector."""
    head: float = Field(default=1.0, ge=0)
    """Action head."""


def rate_of(backbone: Backbone, rates: Rates) -> Callable[[str], float]:
    """The factor for a parameter's name in an objective that holds the model as `model`."""

    def factor(name: str) -> float:
        place = name.removeprefix("model.")
        if place.startswith("head."):
            return rates.head
        own = place.removeprefix("backbone.")
        if "lora_" in own:
            return rates.backbone
        if own.startswith(tuple(f"{part}." for part in backbone.untrained)):
            return rates.untrained
        return rates.tower if backbone.tower and own.startswith(backbone.tower) else rates.backbone

    return factor


def validate(module: nn.Module, dataset: Dataset, device: torch.device, samples: int, at_once: int) -> dict[str, float]:
    """Mean terms on up to so many samples, the same ones each time, `at_once` of them together."""
    generator = step_generator(0, 0)
    indices = generator.permutation(len(dataset))[:samples]
    sums: dict[str, float] = {}
    for start in range(0, len(indices), at_once):
        part = indices[start : start + at_once]
        batch = {name: value.to(device) for name, value in dataset.batch(part, generator).items()}
        for name, value in module(batch).items():
            sums[name] = sums.get(name, 0.0) + value.item() * len(part)
    return {name: value / len(indices) for name, value in sums.items()}
