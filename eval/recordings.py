"""Recordings on disk: one file a part, whole or absent."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from eval.demonstrations import Recording


def write_recordings(folder: Path, part: int, recordings: Sequence[Recording]) -> None:
    """Keep the recordings of one part."""
    file = _file(folder, part)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    arrays = {f"{number}/{name}": v for number, one in enumerate(recordings) for name, v in asdict(one).items()}
    with draft.open("wb") as stream:
        np.savez(stream, **arrays)
    draft.replace(file)


def read_recordings(folder: Path, part: int) -> list[Recording]:
    """The recordings of one part, in order."""
    names = [field.name for field in fields(Recording)]
    with np.load(_file(folder, part)) as arrays:
        count = len(arrays.files) // len(names)
        values = [{name: arrays[f"{number}/{name}"] for name in names} for number in range(count)]
    return [Recording(**{name: v if v.ndim else v.item() for name, v in one.items()}) for one in values]


def is_recorded(folder: Path, part: int) -> bool:
    """Whether the part was recorded to its end."""
    return _file(folder, part).is_file()


def _file(folder: Path, part: int) -> Path:
    return folder / "recordings" / f"part-{part:03d}.npz"
