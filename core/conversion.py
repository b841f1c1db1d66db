"""Converting any source to a store: part by part, in several processes; what is done stays done."""

import json
import math
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
from core.run import Stage, fingerprint_of, fingerprint_of_file, say, write_json
from core.splits import SplitRule
from core.store import Store
from core.store_finish import SKIPPED, finish_store, is_store_done, skipped_of
from core.store_layout import StoreInfo, temporary
from core.store_writer import is_part_done, part_folder, write_part
from core.workers import worker_pool

MOST_SAID = 10
"""Skipped episodes, and notes, that the summary tells; all are in meta/skipped.json and meta/notes.json."""
NOTES = "meta/notes.json"
MOST_NOTES = 100
NOTES_OF_PART = "notes.json"
MOST_EPISODES_A_PART = 16
SEVERAL_PARTS = 8
"""Parts of up to 128 episodes, at most: each stays a file for every camera, and stores keep 16 of them open."""
TEXTS = (".yaml", ".yml", ".txt", ".json", ".jsonl", ".csv")
"""Endings of files that people edit in their place."""
MOST_TEXT_BYTES = 2**22
"""Size up to which a text is told from another by its content; larger files are by size and time of change."""


class ConversionConfig(Config):
    """What is converted, and how."""

    source: str = Field(exclude=True)
    """Folder or file to read; what is in it counts, not where it lies."""
    out: Path = Field(exclude=True)
    """Directory of the store."""
    mapping: Mapping = Mapping()
    """What the source calls things."""
    split: SplitRule | None = SplitRule()
    """Which episodes are held out; none: those that the source holds out."""
    codec: Literal["h264", "av1", "png"] = "h264"
    """How frames are written: h264 is read fastest, png keeps every bit."""
    skip_bad: bool = Field(default=False, exclude=True)
    """Leave out episodes that cannot be read, and say so, instead of stopping at the first."""
    episodes_per_part: int | None = Field(default=None, ge=1)
    """Episodes that one process writes together, and that a resumed run repeats at worst; none: at most 16."""
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
    # A folder may bring a mapping of its own; what is in force makes the store.
    in_force = config.model_copy(update={"mapping": getattr(reader, "mapping", config.mapping)})
    inputs = {"source": _fingerprint(Path(config.source), reader)}
    stage = Stage.open(config.out, "convert_episodes", in_force, inputs)
    _require_what_is_asked_for(config)
    if not stage.is_done:
        parts, known = parts_of(reader.keys, config.episodes_per_part), tuple(reader.notes)
        for note in known:
            say(f"{config.source}: {note}")
        if not is_store_done(config.out):
            _convert_parts(config, reader, parts, stage)
            _write_notes(config.out, parts, known)
        finish_store(config.out, _info(config, reader), len(parts), config.split)
    store = Store.open(config.out)
    if not stage.is_done:
        facts = {"source": config.source, "episodes": len(store.episodes), "frames": store.num_frames}
        stage.finish(facts | {"notes": _listed(config.out / NOTES)}, store.fingerprint)
    for line in summary(store):
        say(line)
    return store


def _require_apart(config: ConversionConfig) -> None:
    source, out = Path(config.source).resolve(), config.out.resolve()
    if source == out or source in out.parents or out in source.parents:
        raise SourceError(f"{config.out} and {config.source} lie in each other; write the store somewhere else")


def _require_what_is_asked_for(config: ConversionConfig) -> None:
    """Whether episodes may be left out does not change a store that has all of them, only one that lacks some."""
    lacks = _listed(config.out / SKIPPED) if is_store_done(config.out) else []
    if lacks and not config.skip_bad:
        raise SourceError(
            f"{config.out} was made with --skip-bad and lacks {len(lacks)} episodes of {config.source}, the first "
            f"because: {lacks[0]['reason']}. Give --skip-bad to take it as it is, or mend them and convert all anew"
        )


def _fingerprint(source: Path, reader: Reader) -> str:
    """Identifies a source by its episodes and files, wherever it lies."""
    found = [source]
    if source.is_dir():  # `rglob` follows links only where it begins, and folders of episodes may be links
        found = [file for top in source.iterdir() for file in (top, *top.rglob("*"))]
    names = {str(file.relative_to(source)): file for file in found if file.is_file()}
    return fingerprint_of([list(reader.keys), [(name, *_traits(file)) for name, file in sorted(names.items())]])


def _traits(file: Path) -> tuple[int, str | int]:
    """Size and content of a text; of other files, which are too large to be read twice, size and time of change."""
    facts = file.stat()
    is_text = file.suffix.lower() in TEXTS and facts.st_size <= MOST_TEXT_BYTES
    return facts.st_size, fingerprint_of_file(file) if is_text else facts.st_mtime_ns


def parts_of(keys: Sequence[str], size: int | None = None) -> list[Part]:
    """The episodes in pieces, which do not depend on the number of workers."""
    size = size or max(1, min(MOST_EPISODES_A_PART, math.ceil(len(keys) / SEVERAL_PARTS)))
    return [Part(number, list(keys[start : start + size])) for number, start in enumerate(range(0, len(keys), size))]


def _info(config: ConversionConfig, reader: Reader) -> StoreInfo:
    return replace(reader.info, codec=config.codec)


def _convert_parts(config: ConversionConfig, reader: Reader, parts: list[Part], stage: Stage) -> None:
    missing = [part for part in parts if not _is_done(config, part)]
    done = sum(len(part.keys) for part in parts) - sum(len(part.keys) for part in missing)
    bar = tqdm(total=len(reader.keys), initial=done, unit="episode", desc="convert", mininterval=1.0, smoothing=0.05)
    frames = 0
    with bar:
        for part, written in _converted(config, reader, missing):
            frames += written
            bar.update(len(part.keys))
            bar.set_postfix_str(f"{frames / max(bar.format_dict['elapsed'], 1e-9):.0f} frames/s")
            stage.keep_time()


def _is_done(config: ConversionConfig, part: Part) -> bool:
    """Whether a part is there; one that lacks episodes is not, where none may be left out."""
    return is_part_done(config.out, part.number) and (config.skip_bad or not skipped_of(config.out, part.number))


def _converted(config: ConversionConfig, reader: Reader, parts: list[Part]) -> Iterator[tuple[Part, int]]:
    """Parts as they are done, and the frames that each has."""
    if config.workers == 1 or len(parts) <= 1:
        known = tuple(reader.notes)
        for part in parts:
            yield part, convert_part(config, reader, part, known)
        return
    with worker_pool(min(config.workers, len(parts)), _start, (config,)) as pool:
        futures = {pool.submit(_work, part): part for part in parts}
        for future in as_completed(futures):
            yield futures[future], future.result()


_worker: tuple[ConversionConfig, Reader, tuple[str, ...]]


def _start(config: ConversionConfig) -> None:
    global _worker
    reader = open_source(config.source, config.mapping)
    _worker = (config, reader, tuple(reader.notes))


def _work(part: Part) -> int:
    config, reader, known = _worker
    return convert_part(config, reader, part, known)


def convert_part(config: ConversionConfig, reader: Reader, part: Part, known: Sequence[str]) -> int:
    """Write a part; gives its frames. What is left out is found by trying: frames fail only when they are decoded.

    `known` are the notes that the reader had when it was opened.

    Raises:
        SourceError: an episode cannot be read and `skip_bad` is not set, or no episode is to blame.
    """
    skipped: list[dict[str, str]] = []
    while True:
        bad = {entry["key"] for entry in skipped}
        notes = temporary(part_folder(config.out, part.number)) / NOTES_OF_PART
        reading = _Reading(reader, [key for key in part.keys if key not in bad], known, notes)
        try:
            write_part(config.out, part.number, reading, info=_info(config, reader), skipped=skipped)
            return reading.frames
        except ValueError as error:
            if not reading.key:
                raise SourceError(
                    f"{config.source} cannot be stored: {error}. Change the source, or what its mapping takes of it"
                ) from None
            reason = str(error) if isinstance(error, EpisodeError) else f"episode {reading.key}: {error}"
            if not config.skip_bad:
                raise SourceError(
                    f"{reason}. Leave out what cannot be read with --skip-bad, which goes on from here; "
                    "or mend it, and all is converted anew"
                ) from None
            skipped.append({"key": reading.key, "reason": reason})


class _Reading:
    """Episodes of a part as they are read; remembers which one is being looked at, none before and after them.

    A reader says a thing only once, and in each process anew. So each part begins with the notes that the reader was
    opened with, and what it adds lies with the part: the same whichever process made it, and whenever.
    """

    def __init__(self, reader: Reader, keys: list[str], known: Sequence[str], notes_file: Path) -> None:
        self.reader, self.keys, self.known, self.notes_file = reader, keys, known, notes_file
        self.key, self.frames = "", 0

    def __iter__(self) -> Iterator[Episode]:
        if isinstance(self.reader.notes, list):
            self.reader.notes[:] = self.known
        for key in self.keys:
            self.key = key
            episode = self.reader.read(key)
            yield episode
            self.frames += episode.length
        self.key = ""
        self.notes_file.write_text(json.dumps(list(self.reader.notes[len(self.known) :])))


def _write_notes(out: Path, parts: list[Part], known: Sequence[str]) -> None:
    """Write all notes in the order of the parts, each once."""
    notes = list(dict.fromkeys(known))
    for part in parts:
        notes = list(dict.fromkeys([*notes, *_listed(part_folder(out, part.number) / NOTES_OF_PART)]))
        if len(notes) > MOST_NOTES:
            notes = [*notes[:MOST_NOTES], "There are further notes of this kind."]
            break
    (out / NOTES).parent.mkdir(exist_ok=True)
    for left in (out / NOTES).parent.glob(".*.json.*"):  # of a process that was killed while it wrote there
        left.unlink()
    write_json(out / NOTES, notes)


def _listed(file: Path) -> list[Any]:
    """The entries of a list in a JSON file; none where there is no file."""
    return list(json.loads(file.read_text())) if file.is_file() else []


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
    notes = _listed(store.path / NOTES)
    yield from (f"  note: {note}" for note in notes[:MOST_SAID])
    if len(notes) > MOST_SAID:
        yield f"  {len(notes) - MOST_SAID} more notes, see {store.path / NOTES}"
    if not (store.path / SKIPPED).is_file():
        return
    skipped = _listed(store.path / SKIPPED)
    yield f"  {len(skipped)} episodes were left out" + (f", see {store.path / SKIPPED}" if skipped else "")
    yield from (f"    {entry['reason']}" for entry in skipped[:MOST_SAID])
