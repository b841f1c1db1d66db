"""Low-rank adapters (LoRA, arXiv 2106.09685) on every linear layer, and the rows of new tokens; all else is frozen."""

import hashlib

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from pydantic import Field
from torch import nn

from core.config import Config
from vla.backbones.interface import Backbone

NOTHING_TO_ADAPT = "lora is set, but this backbone has fresh weights; adapters need pretrained ones: leave lora out"


class LoraConfig(Config):
    """Adapters; the defaults are the published ones."""

    rank: int = Field(default=32, ge=1)
    """Rank of the change of each linear layer."""
    alpha: float = 16.0
    """The change is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before it."""
    tower: bool = True
    """Whether the visual tower gets adapters, too."""


def add_adapters(backbone: Backbone, config: LoraConfig, new_tokens: list[int]) -> None:
    """Freeze the backbone but for its untrained parts, and add adapters to the rest and trainable rows for new tokens.

    Names of its tensors change: `state_dict` calls a weight of before `NAME.base_layer.weight`.
    """
    rows = {id(parameter) for parameter in backbone.vocabulary()}
    for child_name, child in backbone.named_children():
        if child_name in backbone.untrained:
            continue
        child.requires_grad_(False)
        linear = [n for n, part in child.named_modules() if isinstance(part, nn.Linear) and id(part.weight) not in rows]
        if backbone.tower and not config.tower:
            linear = [name for name in linear if not f"{child_name}.{name}".startswith(backbone.tower)]
        tables = {n: new_tokens for n, part in child.named_modules() if id(getattr(part, "weight", None)) in rows}
        tables = dict(list(tables.items())[: len(rows)])  # tied output weights follow their embeddings
        sizes = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
        own = PeftConfig(**sizes, target_modules=linear, trainable_token_indices=tables if new_tokens else None)
        if linear or tables:
            inject_adapter_in_model(own, child)


def adapters_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: the tensors of `state_dict` that are not frozen."""
    frozen = {
        name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad
    }
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def frozen_fingerprint(module: nn.Module) -> str:
    """Twelve hexadecimal digits that identify the frozen weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def merge(backbone: Backbone) -> None:
    """Add what the adapters learned to the weights, which keep their names of before."""
    wrappers = {name: part for name, part in backbone.named_modules() if isinstance(part, AuxiliaryTrainingWrapper)}
    for name, part in wrappers.items():
        part.token_adapter.merge(safe_merge=True)
        backbone.set_submodule(name, part.token_adapter.get_base_layer())
    layers = {name: part for name, part in backbone.named_modules() if isinstance(part, BaseTunerLayer)}
    for name, part in layers.items():
        part.merge(safe_merge=True)
        backbone.set_submodule(name, part.get_base_layer())
