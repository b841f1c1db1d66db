"""Backbones and heads by name: a new one is one file and one line here."""

import importlib
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from core.config import Config, ConfigError, load_config

BACKBONES = {
    "nano": "vla.backbones.nano:NanoBackbone:NanoConfig",
    "timm_lm": "vla.backbones.timm_lm:TimmLmBackbone:TimmLmConfig",
    "prismatic": "vla.backbones.prismatic:PrismaticBackbone:PrismaticConfig",
    "hub": "vla.backbones.hub:HubBackbone:HubConfig",
}
HEADS = {
    "l1_chunk": "vla.heads.l1_chunk:L1ChunkHead:L1ChunkConfig",
    "l1_pool": "vla.heads.l1_pool:L1PoolHead:L1PoolConfig",
    "flow": "vla.heads.flow:FlowHead:FlowConfig",
    "bins": "vla.heads.bins:BinsHead:BinsConfig",
    "fast": "vla.heads.fast:FastHead:FastConfig",
}


class Part(Config):
    """A backbone or head: its name and what differs from its defaults."""

    name: str
    """One of the known names; hub:NAME is short for name hub with the option path NAME."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that part."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        """A name alone will do."""
        return {"name": given} if isinstance(given, str) else given


class Found(NamedTuple):
    """What a part's name stands for."""

    kind: type[Any]
    options: Config


def find(part: Part, known: dict[str, str]) -> Found:
    """The class that `part` names, and its options.

    Raises:
        ConfigError: the name or one of the options is unknown.
    """
    name, _, path = part.name.partition(":")
    if name not in known:
        raise ConfigError(f"unknown name {part.name!r}; the known ones are {', '.join(known)}")
    module, kind, config = known[name].split(":")
    loaded = importlib.import_module(module)
    overrides = part.options | ({"path": path} if path else {})
    return Found(getattr(loaded, kind), load_config(getattr(loaded, config), overrides=overrides))
