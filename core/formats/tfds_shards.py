"""The files of a TensorFlow Datasets folder: which shards there are, where their records begin, and what is missing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.formats.interface import SourceError
from core.formats.tfds_features import read_json
from core.formats.tfrecord import is_compressed, list_records

FEATURES, DESCRIPTION = "features.json", "dataset_info.json"
SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5,})-of-(?P<count>\d{5,})")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
"""How files are named where dataset_info.json does not say it."""
MOST_SHARDS = 1_000_000
MOST_NAMED = 5
"""Files of one kind that a note names; it counts the others."""


class Promise(NamedTuple):
    """A file that should be there."""

    split: str
    number: int
    records: int | None
    """None where nothing says how many."""
    file: Path

    @property
    def name(self) -> str:
        """Of the shard within the source: train/00000."""
        return f"{self.split}/{self.number:05d}"


class Shard(NamedTuple):
    """A file that is there."""

    file: Path
    offsets: list[int]
    """Where its records begin."""
    problem: str
    """Why records after these cannot be read; empty if there are none."""


class Shards(NamedTuple):
    """All that are there."""

    name: str
    """Of the data set."""
    by_name: dict[str, Shard]
    """By split and number: train/00000."""
    notes: list[str]


def find_folder(path: Path) -> Path:
    """The folder that holds features.json: the path itself, or its only version folder such as 1.0.0.

    Raises:
        SourceError: there is none, or more than one.
    """
    if (path / FEATURES).is_file():
        return path
    if not path.is_dir():
        raise SourceError(f"{path} is no folder; an RLDS data set is one, with {FEATURES} and *.tfrecord-* files")
    try:
        versions = sorted(child for child in path.iterdir() if (child / FEATURES).is_file())
    except OSError as error:
        raise SourceError(f"{path} cannot be listed: {error}") from None
    if len(versions) != 1:
        found = [child.name for child in versions]
        raise SourceError(
            f"{path} holds no {FEATURES}, and of the folders in it {found or 'none'} do; name the folder of one version"
        )
    return versions[0]


def find_shards(folder: Path) -> Shards:
    """The shards that are there, and notes on what is not.

    Raises:
        SourceError: there are none, they are compressed, or dataset_info.json is damaged.
    """
    notes: list[str] = []
    try:
        files = {file.name for file in folder.iterdir() if ".tfrecord" in file.name}
        promises = _promises(folder, files, notes)
        present = [promise for promise in promises if promise.file.name in files]
        shards = {promise.name: _shard(promise, notes) for promise in present}
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error}") from None
    if not shards:
        raise SourceError(f"{folder} holds none of its {len(promises)} shards such as {_names(promises)}")
    _note(
        notes,
        "files are missing, and their episodes with them",
        [p.file.name for p in promises if p.file.name not in files],
    )
    _note(
        notes, "files belong to no split and are left out", sorted(files - {promise.file.name for promise in promises})
    )
    name = promises[0].file.name.split(f"-{promises[0].split}.")[0]
    return Shards(name, shards, notes)


def _promises(folder: Path, files: set[str], notes: list[str]) -> list[Promise]:
    file = folder / DESCRIPTION
    promises = []
    if file.is_file():
        try:
            promises = list(_promised(folder, read_json(file)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{file} is damaged: {type(error).__name__} {error}") from None
    if len({promise.file.name for promise in promises}) != len(promises):
        raise SourceError(f"{file} names a shard twice")
    if not promises:
        notes.append(f"{folder} has no {DESCRIPTION} that names splits: whether shards are complete cannot be known")
        promises = sorted(_named(folder, files))
    if not promises:
        raise SourceError(f"{folder} holds no shards such as NAME-train.tfrecord-00000-of-00001")
    return promises


def _promised(folder: Path, described: dict[str, Any]) -> Iterator[Promise]:
    """What dataset_info.json names."""
    file_format = described.get("fileFormat", "tfrecord")
    if file_format != "tfrecord":
        raise SourceError(f"{folder} keeps its records as {file_format}; only tfrecord can be read")
    for split in described.get("splits", []):
        lengths = [int(length) for length in split.get("shardLengths", [])]
        for number, length in enumerate(lengths):
            parts = {"DATASET": described["name"], "SPLIT": split["name"], "FILEFORMAT": file_format}
            parts |= {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{len(lengths):05d}"}
            parts["SHARD_X_OF_Y"] = f"{number:05d}-of-{len(lengths):05d}"
            name = re.sub(
                r"{(\w+)}", lambda field, parts=parts: parts[field[1]], split.get("filepathTemplate") or TEMPLATE
            )
            if "/" in name or "/" in split["name"] or not split["name"] or length < 0:
                raise ValueError(f"split {split['name']!r} promises {length} records in {name!r}")
            yield Promise(split["name"], number, length, folder / name)


def _named(folder: Path, files: set[str]) -> Iterator[Promise]:
    """What the names of the files themselves tell: one shard names how many there are."""
    found = {(m["name"], m["split"], int(m["count"])) for m in map(SHARD.fullmatch, files) if m}
    if len({split for _, split, _ in found}) != len(found) or sum(count for _, _, count in found) > MOST_SHARDS:
        raise SourceError(f"{folder} holds the shards of several data sets: {sorted(found)}; keep one in a folder")
    for name, split, count in found:
        for number in range(count):
            yield Promise(split, number, None, folder / f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}")


def _shard(promise: Promise, notes: list[str]) -> Shard:
    offsets, problem = list_records(promise.file)
    if problem and not offsets and is_compressed(promise.file):
        raise SourceError(f"{promise.file} is compressed with gzip; unpack it (gzip -d) to a file of this name")
    found, promised = len(offsets), promise.records
    if promised is not None and found != promised:
        told = f"{promise.file.name} holds {found} records, {DESCRIPTION} promises {promised}"
        if found < promised:
            problem = f"{told}; {problem}" if problem else f"{told}: it was cut short"
        else:
            notes.append(f"{told}; all of them are read")
    if problem:
        notes.append(f"{promise.name}: {problem}; nothing from record {found} on can be read")
    return Shard(promise.file, offsets, problem)


def _note(notes: list[str], what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED))
        notes.append(f"{what} ({len(names)}): {shown}")


def _names(promises: list[Promise]) -> str:
    return ", ".join(promise.file.name for promise in promises[:MOST_NAMED])
