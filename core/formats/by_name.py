"""Readers by the name of their format, and the format that a path looks like."""

from importlib import import_module
from pathlib import Path

from core.config import load_config
from core.formats.interface import Reader, SourceError
from core.formats.mapping import Mapping

READERS = {
    "lerobot_v3": "core.formats.lerobot_v3:LeRobotV3",
    "lerobot_v2": "core.formats.lerobot_v2:LeRobotV2",
    "rlds": "core.formats.rlds:Rlds",
    "hdf5": "core.formats.hdf5:Hdf5",
    "video_folder": "core.formats.video_folder:VideoFolder",
}
"""Tried in this order where the format is not given."""


def open_source(path: str | Path, mapping: Mapping = Mapping()) -> Reader:
    """The reader of a source.

    Raises:
        SourceError: there is nothing at `path`, its format is not known, or the mapping does not fit it.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"there is nothing at {path}")
    name = _format_of(path) if mapping.format == "auto" else mapping.format
    if name not in READERS:
        raise SourceError(f"the mapping's format is {name!r}; there are auto, {', '.join(READERS)}")
    module, kind = READERS[name].split(":")
    reader: Reader = getattr(import_module(module), kind)(path, mapping)
    return reader


def _format_of(path: Path) -> str:
    for name, place in READERS.items():
        if import_module(place.split(":")[0]).recognises(path):
            return name
    raise SourceError(
        f"{path} looks like none of the formats {', '.join(READERS)}; name its format (--format), or write a reader: "
        "one file in core/formats"
    )


def read_mapping(file: str | Path | None, **changes: object) -> Mapping:
    """The mapping in a YAML file, with some of its keys changed.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    return load_config(Mapping, file or None, {key: value for key, value in changes.items() if value is not None})
