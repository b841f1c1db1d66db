"""Backbones and heads by name: a new one is one file and one line here."""

import importlib
from typing import Any

from pydantic import Field
from torch import nn

from core.config import Config, ConfigError, load_config

BACKBONES = {"nano": "vla.backbones.nano:NanoBackbone:NanoConfig"}
HEADS = {"l1_chunk": "vla.heads.l1_chunk:L1ChunkHead:L1ChunkConfig"}


class Part(Config):
    """A backbone or head: its name and what differs from its defaults."""

    name: str
    """One of the known names."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that part."""


def build(part: Part, known: dict[str, str], *sizes: Any) -> nn.Module:
    """The module that `part` names, for the given sizes.

    Raises:
        ConfigError: the name or one of the options is unknown.
    """
    if part.name not in known:
        raise ConfigError(f"unknown name {part.name!r}; the known ones are {', '.join(known)}")
    module, kind, config = known[part.name].split(":")
    loaded = importlib.import_module(module)
    options = load_config(getattr(loaded, config), overrides=part.options)
    return getattr(loaded, kind)(options, *sizes)
