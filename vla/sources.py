"""What fine-tuning starts from: a checkpoint of ours, a released VLA, or any vision-language model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.checkpoint import CheckpointError, read_header
from core.run import fingerprint_of, fingerprint_of_file
from vla.backbones.interface import Backbone, Setting
from vla.checkpoint import WEIGHTS, VlaDescription, local, whole_backbone
from vla.images import ImageForm
from vla.parts import BACKBONES, Part, find

RELEASED = {"openvla": "prismatic", "prismatic": "prismatic"}
"""Backbone for a released model's `model_type`; any other is read by transformers."""


class Start(NamedTuple):
    """What a policy is made from."""

    description: VlaDescription
    kind: type[Backbone]
    """Class of its backbone."""
    base: Path | None
    """Its checkpoint, where it is ours."""
    fingerprint: str
    facts: dict[str, Any]
    """What the header of a checkpoint of ours says besides."""


def open_start(
    path: str, num_codes: int, num_tokens: int, views: Sequence[str], options: Mapping[str, Any] | None = None
) -> Start:
    """Recognise what lies at `path`, or has that name on the hub; all else is for what is not ours, and says no such.

    Raises:
        CheckpointError: nothing that could be fine-tuned is there.
    """
    path = str(local(path))
    if not Path(path).is_dir():
        raise CheckpointError(
            f"there is no folder {path}; policy.path takes a folder, or OWNER/NAME of a model on the hub"
        )
    if (Path(path) / WEIGHTS).is_file() and (Path(path) / "backbone").is_dir():
        header = read_header(Path(path) / WEIGHTS)
        description = VlaDescription(**header.pop("description"))
        facts = {name: header[name] for name in ("lam_fingerprint", "gap_s") if name in header}
        kind = find(description.backbone, BACKBONES).kind
        return Start(description, kind, Path(path).resolve(), fingerprint_of_file(Path(path) / WEIGHTS), facts)
    if not views:
        raise CheckpointError(f"{path} says nothing about cameras; name those that the policy is to see in data.views")
    file = Path(path) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} holds no model: it has neither {WEIGHTS} with backbone/, nor config.json")
    named = json.loads(file.read_text()).get("model_type", "")
    part = Part(name=RELEASED.get(named, "hub"), options={**(options or {}), "path": str(Path(path).resolve())})
    description = VlaDescription(
        images=ImageForm(),
        views=tuple(views),
        backbone=part,
        setting=Setting(num_codes=num_codes, num_tokens=num_tokens, views=len(views)),
    )
    return Start(description, find(part, BACKBONES).kind, None, _fingerprint(Path(path)), {})


def _fingerprint(folder: Path) -> str:
    """Of a model's configuration, and of names and sizes of its weights, which are too much to be read for that."""
    weights = [(file.name, file.stat().st_size) for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint_of([json.loads((folder / "config.json").read_text()), weights])


def start_backbone(start: Start, fresh_weights: bool, texts: Sequence[str]) -> Backbone:
    """The backbone with the weights to start from; `fresh_weights`: without those of latent pretraining."""
    description = start.description
    kind, options = find(description.backbone, BACKBONES)
    if start.base is not None and not fresh_weights:
        return whole_backbone(start.base)
    if start.base is not None and not kind.comes_pretrained:
        return kind.restored(options, description.setting, start.base / "backbone")
    return kind.fresh(options, description.setting, texts)
