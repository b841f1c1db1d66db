"""A policy checkpoint: one directory that holds all that acting needs, but weights that were only borrowed.

DIRECTORY/
  model.safetensors   weights (of adapters, what was trained), and in its header the model's form and facts
  backbone/           configuration and tokenizer of the backbone
  head/               what the head learned besides weights, where it did
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from core.checkpoint import CheckpointError, load_weights, read_header, read_tensors, save_tensors
from core.config import Config
from vla.backbones.interface import Backbone, Setting
from vla.heads.interface import Head, HeadSizes, TokenHead
from vla.images import ImageForm
from vla.lora import LoraConfig, adapters_of, add_adapters, frozen_fingerprint, merge
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, HEADS, Part, find

WEIGHTS = "model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class VlaDescription(Config):
    """The form of a model; with its weights, all that is needed to build it again."""

    images: ImageForm
    """What it is shown of each camera."""
    views: tuple[str, ...]
    """Cameras that it was trained on, in the order in which it sees them."""
    sees_one: bool = False
    """Whether it was shown one of these cameras at a time, the first of which it acts on."""
    backbone: Part
    """Vision-language backbone."""
    setting: Setting
    """What that was built for."""
    lora: LoraConfig | None = None
    """Adapters on it; None: all of it is saved."""
    base: str = ""
    """Checkpoint of ours that the adapters belong to; empty: the backbone's pretrained weights."""
    base_fingerprint: str = ""
    """Those weights."""
    history: int = 0
    """Earlier latent actions that the prompt tells of."""
    head: Part | None = None
    """Action head; None before fine-tuning."""
    horizon: int = 0
    """Actions of a chunk."""
    action_dims: int = 0
    """Numbers of an action."""
    proprioception_dims: int = 0
    """Numbers of the proprioception that the head reads; 0: it sees none."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Cameras that a policy is shown at once."""
        return self.views[:1] if self.sees_one else self.views


def make_head(description: VlaDescription, backbone: Backbone) -> Head | TokenHead | None:
    """The head with fresh weights, for this backbone."""
    if description.head is None:
        return None
    kind, options = find(description.head, HEADS)
    sizes = HeadSizes(
        width=backbone.width,
        image_tokens=backbone.image_tokens,
        latent_tokens=description.setting.num_tokens,
        horizon=description.horizon,
        action_dims=description.action_dims,
        senses=description.proprioception_dims,
    )
    return kind(options, sizes)


def save(directory: Path, model: VisionLanguageActionModel, description: VlaDescription, facts: dict[str, Any]) -> str:
    """Write the checkpoint; answers the fingerprint of its weights."""
    for name, part in (("backbone", model.backbone), ("head", model.head)):
        if part is None or (name == "head" and not isinstance(part, TokenHead)):
            continue
        temporary = directory / f".{name}.0"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        part.save_form(temporary)
        shutil.rmtree(directory / name, ignore_errors=True)
        temporary.rename(directory / name)
    tensors = dict(model.state_dict())
    if description.lora is not None:
        description = description.model_copy(update={"base_fingerprint": frozen_fingerprint(model)})
        tensors = adapters_of(model)
    return save_tensors(directory / WEIGHTS, tensors, {"description": description.model_dump(mode="json"), **facts})


def local(path: str | Path) -> Path:
    """The folder of a checkpoint; one that is named OWNER/NAME and is not here is fetched from the hub.

    Raises:
        CheckpointError: the hub does not answer, or has none.
    """
    if Path(path).exists() or not HUB_NAME.fullmatch(str(path)):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path)))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"there is no folder {path}, and the hub gives none of that name ({str(error).splitlines()[0]})"
        ) from None


def load(directory: str | Path) -> tuple[VisionLanguageActionModel, VlaDescription, dict[str, Any]]:
    """The model, its form, and the further facts of its header.

    Raises:
        CheckpointError: there is no checkpoint, it does not fit its own description, or its adapters belong to other
            weights than those found here.
    """
    directory = local(directory)
    path = directory / WEIGHTS
    header = read_header(path)
    if "description" not in header:
        raise CheckpointError(f"{path} is no policy or pretrained model, but another file of weights of this project")
    description = VlaDescription(**header.pop("description"))
    backbone = _backbone(description, directory)
    head = make_head(description, backbone)
    if isinstance(head, TokenHead):
        head.load_form(directory / "head")
        head.first_id = backbone.add_tokens(head.names)[0]
    model = VisionLanguageActionModel(backbone, head)
    tensors = read_tensors(path)
    if description.lora is not None:
        add_adapters(backbone, description.lora, new_tokens(model))
        _require_base(model, description, tensors, path)
        tensors = dict(model.state_dict()) | tensors
    load_weights(model, tensors, str(path))
    return model.eval(), description, header


def _backbone(description: VlaDescription, directory: Path) -> Backbone:
    """Of the right form; where only adapters were saved, with the weights that they belong to."""
    kind, options = find(description.backbone, BACKBONES)
    if description.lora is None:
        if not (directory / "backbone").is_dir():
            raise CheckpointError(
                f"{directory} lacks backbone/, its configuration and tokenizer; copy the whole folder"
            )
        return kind.restored(options, description.setting, directory / "backbone")
    if description.base and not Path(description.base).is_dir():
        raise CheckpointError(
            f"{directory} holds adapters of the weights in {description.base}, which is not there; put it back, or "
            "where it is make a folder that stands alone with scripts/export_policy.py --merge true"
        )
    return whole_backbone(description.base) if description.base else kind.fresh(options, description.setting, [])


def whole_backbone(directory: str | Path) -> Backbone:
    """The backbone of a checkpoint, its adapters merged."""
    model, description, _ = load(directory)
    if description.lora is not None:
        merge(model.backbone)
    return model.backbone.requires_grad_(True)


def _require_base(
    model: VisionLanguageActionModel, description: VlaDescription, tensors: dict[str, torch.Tensor], path: Path
) -> None:
    if (found := frozen_fingerprint(model)) != description.base_fingerprint:
        base = description.base or description.backbone.model_dump()
        raise CheckpointError(
            f"the adapters of {path} belong to weights {description.base_fingerprint}, and {base} gives {found}; "
            "get the weights that they were trained on"
        )
    if wrong := set(tensors) ^ set(adapters_of(model)):
        raise CheckpointError(f"{path} does not fit the model: {sorted(wrong)[:4]} are in one of them only")


def new_tokens(model: VisionLanguageActionModel) -> list[int]:
    """Ids of the latent tokens and of a head's words, whose rows adapters train whole."""
    latents, head = model.latents, model.head
    ids = list(range(latents.first_id, latents.first_id + latents.num_codes)) if latents.num_tokens else []
    return ids + (list(range(head.first_id, head.first_id + len(head.names))) if isinstance(head, TokenHead) else [])
