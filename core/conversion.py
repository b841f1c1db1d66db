"""Converting any source to a store: part by part, in several processes; what is done stays done."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field
from tqdm import tqdm

from core.config import Config
from core.episode import Episode
from core.formats.by_name import open_source
from core.formats.interface import EpisodeError, Reader, SourceError
from core.formats.mapping import Mapping
from core.run import Stage, fingerprint_of, say
from core.splits import SplitRule
from core.store import Store
from core.store_finish import SKIPPED, finish_store, is_store_done
from core.store_layout import StoreInfo
from core.store_writer import is_part_done, write_part
from core.workers import worker_pool

MOST_SAID = 10
"""Skipped episodes of which the summary tells the reason; all are in meta/skipped.json."""


class ConversionConfig(Config):
    """What is converted, and how."""

    source: str
    """Folder or file to read."""
    out: Path = Field(exclude=True)
    """Directory of the store."""
    mapping: Mapping = Mapping()
    """What the source calls things."""
    split: SplitRule | None = SplitRule()
    """Which episodes are held out; none: those that the source holds out."""
    codec: Literal["h264", "av1", "png"] = "h264"
    """How frames are written: h264 is read fastest, png keeps every bit."""
    skip_bad: bool = False
    """Leave out episodes that cannot be read, and say so, instead of stopping at the first."""
    episodes_per_part: int = Field(default=16, ge=1)
    """Episodes that one process writes together, and that a resumed run repeats at worst."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, exclude=True)
    """Processes; the result does not depend on them."""


class Part(NamedTuple):
    """What one process converts at a time."""

    number: int
    keys: list[str]


def convert(config: ConversionConfig) -> Store:
    """Convert the source, or go on where an earlier run with the same settings stopped.

    Raises:
        SourceError: nothing can be read, the store would lie in its own source, or an episode cannot be read and
            `skip_bad` is not set.
    """
    _require_apart(config)
    reader = open_source(config.source, config.mapping)
    if not reader.keys:
        raise SourceError(f"{config.source} holds no episodes")
    stage = Stage.open(config.out, "convert_episodes", config, {"source": _fingerprint(Path(config.source), reader)})
    for note in reader.notes:
        say(f"{config.source}: {note}")
    if not stage.is_done:
        parts = parts_of(reader.keys, config.episodes_per_part)
        if not is_store_done(config.out):
            _convert_parts(config, reader, parts, stage)
        fingerprint = finish_store(config.out, _info(config, reader), len(parts), config.split)
        stage.finish(_facts(config.out, reader), fingerprint)
    store = Store.open(config.out)
    for line in summary(store):
        say(line)
    return store


def _require_apart(config: ConversionConfig) -> None:
    source, out = Path(config.source).resolve(), config.out.resolve()
    if source == out or source in out.parents or out in source.parents:
        raise SourceError(f"{config.out} and {config.source} lie in each other; write the store somewhere else")


def _fingerprint(source: Path, reader: Reader) -> str:
    """Identifies a source by its episodes and by the names and sizes of its files."""
    files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    return fingerprint_of([list(reader.keys), [(str(f.relative_to(source.parent)), f.stat().st_size) for f in files]])


def parts_of(keys: Sequence[str], size: int) -> list[Part]:
    """The episodes in pieces, which do not depend on the number of workers."""
    return [Part(number, list(keys[start : start + size])) for number, start in enumerate(range(0, len(keys), size))]


def _info(config: ConversionConfig, reader: Reader) -> StoreInfo:
    return replace(reader.info, codec=config.codec)


def _convert_parts(config: ConversionConfig, reader: Reader, parts: list[Part], stage: Stage) -> None:
    missing = [part for part in parts if not is_part_done(config.out, part.number)]
    done = sum(len(part.keys) for part in parts) - sum(len(part.keys) for part in missing)
    bar = tqdm(total=len(reader.keys), initial=done, unit="episode", desc="convert", mininterval=1.0, smoothing=0.05)
    frames = 0
    with bar:
        for part, written in _converted(config, reader, missing):
            frames += written
            bar.update(len(part.keys))
            bar.set_postfix_str(f"{frames / max(bar.format_dict['elapsed'], 1e-9):.0f} frames/s")
            stage.keep_time()


def _converted(config: ConversionConfig, reader: Reader, parts: list[Part]) -> Iterator[tuple[Part, int]]:
    """Parts as they are done, and the frames that each has."""
    if config.workers == 1 or len(parts) <= 1:
        for part in parts:
            yield part, convert_part(config, reader, part)
        return
    with worker_pool(min(config.workers, len(parts)), _start, (config,)) as pool:
        futures = {pool.submit(_work, part): part for part in parts}
        for future in as_completed(futures):
            yield futures[future], future.result()


_worker: tuple[ConversionConfig, Reader]


def _start(config: ConversionConfig) -> None:
    global _worker
    _worker = (config, open_source(config.source, config.mapping))


def _work(part: Part) -> int:
    return convert_part(*_worker, part)


def convert_part(config: ConversionConfig, reader: Reader, part: Part) -> int:
    """Write a part; gives its frames. What is left out is found by trying: frames fail only when they are decoded.

    Raises:
        SourceError: an episode cannot be read, and `skip_bad` is not set.
    """
    skipped: list[dict[str, str]] = []
    while True:
        bad = {entry["key"] for entry in skipped}
        reading = _Reading(reader, [key for key in part.keys if key not in bad])
        try:
            write_part(config.out, part.number, reading, info=_info(config, reader), skipped=skipped)
            return reading.frames
        except ValueError as error:
            reason = str(error) if isinstance(error, EpisodeError) else f"episode {reading.key}: {error}"
            if not config.skip_bad:
                raise SourceError(f"{reason}. Mend it, or leave out what cannot be read with --skip-bad") from None
            skipped.append({"key": reading.key, "reason": reason})


class _Reading:
    """Episodes as they are read; remembers which one is being looked at."""

    def __init__(self, reader: Reader, keys: list[str]) -> None:
        self.reader, self.keys = reader, keys
        self.key, self.frames = "", 0

    def __iter__(self) -> Iterator[Episode]:
        for key in self.keys:
            self.key = key
            episode = self.reader.read(key)
            yield episode
            self.frames += episode.length


def _facts(out: Path, reader: Reader) -> dict[str, Any]:
    store = Store.open(out)
    return {"episodes": len(store.episodes), "frames": store.num_frames, "notes": list(reader.notes)}


def summary(store: Store) -> Iterator[str]:
    """What a store holds, and what was left out when it was made, line by line."""
    seconds = store.num_frames / store.info.control_hz
    views = Counter(view for record in store.episodes for view in record.views)
    splits = Counter(record.split for record in store.episodes)
    yield (
        f"{store.path}: {len(store.episodes)} episodes, {store.num_frames} frames, {seconds / 3600:.2f} hours at "
        f"{store.info.control_hz:g} Hz; train {splits['train']}, held out {splits['held_out']}"
    )
    for view, (height, width) in store.info.views.items():
        yield f"  view {view}: {height} x {width} pixels, in {views[view]} episodes"
    if not (store.path / SKIPPED).is_file():
        return
    skipped = json.loads((store.path / SKIPPED).read_text())
    yield f"  {len(skipped)} episodes were left out" + (f", see {store.path / SKIPPED}" if skipped else "")
    yield from (f"    {entry['reason']}" for entry in skipped[:MOST_SAID])
