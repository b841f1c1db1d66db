"""Reader of RLDS data sets: folders that TensorFlow Datasets wrote, one episode an example, as in Open X-Embodiment.

A camera that is black throughout an episode was not there: BridgeData stores missing ones so, and its `has_image_*`
flags do not tell. It is left out of that episode, and the episode's `extra["black_views"]` names it.
"""

import math
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from core.episode import Episode, View
from core.formats.assembly import action_space_of, decoded, put_together, size_after, task_of, transformed
from core.formats.columns import column_info, widened
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.formats.rlds_plan import names_of, plan
from core.formats.tfds_features import Leaf, read_features, values
from core.formats.tfds_shards import DESCRIPTION, FEATURES, Shard, find_folder, find_shards
from core.formats.tfrecord import Feature, RecordError, parse_example, read_record
from core.lazy_frames import LazyFrames
from core.pictures import decode_image
from core.store_layout import ColumnInfo, StoreInfo

BLACK = 3
"""Brightest value of a picture that counts as black; JPEG may lift black by a little."""
MOST_LETTERS = 1000
"""Longer texts of an episode's metadata are no facts and not kept."""
UNTRUE = "has_image_"
"""Metadata of BridgeData that contradict its pictures, and are not kept for that."""
MOST_TRIED = 20
"""Damaged records after which the search for a picture ends."""
TRAIN = "train"
"""Beginning of the names of splits to train on (train, train_small); all others are held out."""


def recognises(path: Path) -> bool:
    """Whether a path looks like an RLDS data set, or like the folder of one's version."""
    try:
        folders = [path, *(child for child in path.iterdir() if child.is_dir())] if path.is_dir() else []
        return any(
            (folder / FEATURES).is_file() and ((folder / DESCRIPTION).is_file() or any(folder.glob("*.tfrecord*")))
            for folder in folders
        )
    except OSError:
        return False


class Rlds:
    """An RLDS data set. Keys are split, shard and record: train/00000/000012. Frames are decoded when looked at."""

    def __init__(self, path: Path, mapping: Mapping) -> None:
        """Lists the records; decodes no episode.

        Raises:
            SourceError: the folder cannot be read, or the mapping does not fit what it holds.
        """
        if mapping.control_hz is None:
            raise SourceError(f"{path}: RLDS does not tell how often frames were taken; set the mapping's control_hz")
        self._mapping = mapping
        folder = find_folder(path)
        self._features = read_features(folder / FEATURES)
        self._plan = plan(mapping, self._features)
        self._name, shards, missing = find_shards(folder)
        self.notes = missing + self._plan.notes
        self._places = {
            f"{name}/{record:06d}": (shards[name], record) for name in shards for record in _records(shards[name])
        }
        self.keys = list(self._places)
        try:
            self.info = self._describe(mapping.control_hz)
        except (ValueError, OSError) as error:
            raise SourceError(f"{folder}: {error}") from None

    def read(self, key: str) -> Episode:
        """One episode.

        Raises:
            EpisodeError: it is damaged, or there is none of this key. So does looking at damaged frames.
        """
        if key not in self._places:
            raise EpisodeError(self._name, key, f"there is no such episode; keys are such as {self.keys[0]}")
        shard, record = self._places[key]
        if record == len(shard.offsets):
            raise EpisodeError(shard.file, key, shard.problem)
        try:
            example = parse_example(read_record(shard.file, shard.offsets[record]))
            episode = self._episode(shard.file, key, example)
            episode.validate()
        except (ValueError, OSError) as error:
            raise EpisodeError(shard.file, key, str(error)) from None
        return episode

    def _describe(self, control_hz: float) -> StoreInfo:
        mapping, steps = self._mapping, self._features.steps
        actions = [name for piece in self._plan.actions for name in names_of(piece, self._features)]
        state = [name for piece in self._plan.proprioception for name in names_of(piece, self._features)]
        columns = {source.replace("/", "."): _column(source, steps[source]) for source in mapping.columns}
        if len(columns) != len(mapping.columns):
            raise ValueError(f"the mapping's columns {list(mapping.columns)} do not have different names")
        return StoreInfo(
            control_hz=control_hz,
            views={name: size_after(view, self._size(view)) for name, view in self._plan.views.items()},
            action_space=action_space_of(mapping, actions) if actions else None,
            proprioception_dims=len(state),
            proprioception_names=tuple(state),
            robot_type=mapping.robot_type or "unknown",
            columns=columns,
        )

    def _size(self, view: ViewMapping) -> tuple[int, int]:
        """(height, width) of a view's pictures as they are stored; where features.json is silent, of the first one."""
        height, width = (self._features.steps[view.source].shape or (None, None))[:2]
        if height and width:
            return height, width
        if view.size:
            return view.size
        problem = "no record is whole"
        records = ((s.file, s.offsets[record]) for s, record in self._places.values() if record < len(s.offsets))
        for file, offset in islice(records, MOST_TRIED):
            try:
                pictures = self._values(parse_example(read_record(file, offset)), view.source)
                height, width, _ = decode_image(pictures[0]).shape
                return height, width
            except (ValueError, IndexError, OSError) as error:
                problem = str(error)
        raise ValueError(f"no picture tells the size of {view.source} ({problem}); set the size of that view")

    def _episode(self, file: Path, key: str, example: dict[str, Feature]) -> Episode:
        stored = {name: self._values(example, view.source) for name, view in self._plan.views.items()}
        steps = len(next(iter(stored.values())))
        black = [name for name, pictures in stored.items() if len(pictures) and _is_black(pictures)]
        if not steps or len(black) == len(stored):
            raise RecordError(f"all of its views are black: {', '.join(black)}" if steps else "it has no steps")
        frames = {name: self._frames(name, stored[name]) for name in stored if name not in black}
        instruction, others = self._told(example, steps)
        actions = self._numbers("actions", self._plan.actions, example, steps)
        return Episode(
            episode_id=f"{self._name}/{key}",
            task=task_of(self._mapping, instruction),
            instruction=instruction,
            control_hz=self.info.control_hz,
            views={name: View(frames=_naming(frames[name], file, key, name)) for name in frames},
            actions=actions,
            action_space=self.info.action_space,
            proprioception=self._numbers("proprioception", self._plan.proprioception, example, steps),
            columns={name.replace("/", "."): self._rows(example, name, steps) for name in self._mapping.columns},
            split="train" if key.startswith(TRAIN) else "held_out",
            extra=self._metadata(example)
            | others
            | {"source_split": key.split("/")[0]}
            | ({"black_views": " ".join(black)} if black else {}),
        )

    def _values(self, example: dict[str, Feature], source: str, steps: int = 0) -> np.ndarray:
        """What is stored for each step under a name; `steps` is how many there must be, 0: any number."""
        return _stored(example, f"{self._features.steps_name}/{source}", self._features.steps[source], steps)

    def _frames(self, name: str, stored: np.ndarray) -> np.ndarray | LazyFrames:
        pictures = decoded(stored.tolist()) if stored.dtype == object else stored
        frames = transformed(pictures, self._plan.views[name])
        if frames.shape[1:3] != self.info.views[name]:
            raise RecordError(f"frames of view {name} have {frames.shape[1:3]} pixels, not {self.info.views[name]}")
        return frames

    def _numbers(
        self, key: str, pieces: tuple[Numbers, ...], example: dict[str, Feature], steps: int
    ) -> Float32[np.ndarray, "steps dims"] | None:
        with np.errstate(over="ignore", invalid="ignore"):  # What float32 cannot hold is found below.
            numbers = put_together(pieces, lambda source: self._values(example, source, steps))
        if numbers is not None and not np.isfinite(numbers).all():
            frame = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0])
            raise RecordError(f"{key} of frame {frame} are not finite: {numbers[frame].tolist()}")
        return numbers

    def _rows(self, example: dict[str, Feature], source: str, steps: int) -> np.ndarray:
        """One row a frame of a further column."""
        rows, leaf = self._values(example, source, steps), self._features.steps[source]
        if leaf.kind == "text":
            flat = [_text(text, source) for text in rows.reshape(-1)]
            return np.array(flat, object).reshape(rows.shape)
        return widened(source, rows)

    def _told(self, example: dict[str, Feature], steps: int) -> tuple[str, dict[str, float | int | str]]:
        """The instruction, and other facts that the mapping asks for."""
        facts: dict[str, float | int | str] = {}
        if scene := self._mapping.scene:
            facts["scene"] = _fact(self._any(example, scene, steps)[0], scene)
        if not self._plan.instruction:
            return self._mapping.default_instruction, facts
        rows = self._any(example, self._plan.instruction, steps)
        said = list(dict.fromkeys(_letters(row, self._plan.instruction).strip() for row in rows))
        if said[1:]:
            # An episode has one instruction: the one it begins with.
            facts["later_instructions"] = " | ".join(said[1:])
        return said[0] or self._mapping.default_instruction, facts

    def _any(self, example: dict[str, Feature], source: str, steps: int) -> np.ndarray:
        """What is stored of the episode, one row, or of its steps."""
        if source in self._features.episode:
            return _stored(example, source, self._features.episode[source], 1)
        return self._values(example, source, steps)

    def _metadata(self, example: dict[str, Feature]) -> dict[str, float | int | str]:
        """Single facts about the episode, by the last part of their names."""
        facts: dict[str, float | int | str] = {}
        for path, leaf in self._features.episode.items():
            name = path.rsplit("/", 1)[-1]
            if leaf.size != 1 or leaf.kind not in ("number", "text") or name.startswith(UNTRUE) or path not in example:
                continue
            fact = _fact(_stored(example, path, leaf, 1)[0], path)
            if not isinstance(fact, str) or len(fact) <= MOST_LETTERS:
                facts[path.replace("/", ".") if name in facts else name] = fact
        return facts


def _records(shard: Shard) -> range:
    """Numbers of its records; one more stands for those that cannot be read, so that they are not forgotten."""
    return range(len(shard.offsets) + bool(shard.problem))


def _column(source: str, leaf: Leaf) -> ColumnInfo:
    dtype = "string" if leaf.kind == "text" else leaf.dtype
    return column_info(source, dtype, tuple(size or 0 for size in leaf.shape) or (1,))


def _stored(example: dict[str, Feature], path: str, leaf: Leaf, steps: int) -> np.ndarray:
    if path not in example:
        raise RecordError(f"{path} is missing from the record, which holds {sorted(example)[:40]}")
    try:
        return values(leaf, example[path], steps)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None


def _is_black(stored: np.ndarray) -> bool:
    """Whether every picture is black; pictures in between are only decoded if the first is, and equal ones once."""
    if stored.dtype != object:
        return int(stored.max()) <= BLACK
    places = [stored[0], stored[len(stored) // 2], stored[-1]]
    return all(decode_image(picture).max() <= BLACK for picture in dict.fromkeys([*places, *stored]))


def _naming(frames: np.ndarray | LazyFrames, file: Path, key: str, view: str) -> np.ndarray | LazyFrames:
    """The same frames; where they turn out to be damaged, the error names file and episode."""

    def read(start: int, stop: int) -> UInt8[np.ndarray, "n height width 3"]:
        try:
            return frames[start:stop]
        except ValueError as error:
            raise EpisodeError(file, key, f"view {view}, frames {start} to {stop - 1}: {error}") from None

    return LazyFrames(len(frames), frames.shape[1:3], read) if isinstance(frames, LazyFrames) else frames


def _letters(row: bytes | np.generic | np.ndarray, source: str) -> str:
    """An instruction that is stored as a text, or as the numbers of its letters, filled up with zeros."""
    if not isinstance(row, np.ndarray) or row.dtype == object:
        return str(_fact(row, source))
    try:
        letters = "".join(chr(letter) for letter in row.tolist())
        return letters.encode().decode().split("\0")[0]  # Halves of letters (surrogates) cannot be encoded.
    except (ValueError, OverflowError) as error:
        raise RecordError(f"{source} holds numbers that are no letters: {error}") from None


def _text(stored: bytes, source: str) -> str:
    try:
        return stored.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"{source} holds {stored[:40]!r}, which is not UTF-8: {error.reason}") from None


def _fact(stored: bytes | np.generic | np.ndarray, source: str) -> float | int | str:
    if isinstance(stored, bytes):
        return _text(stored, source)
    fact = np.asarray(stored).reshape(-1)[0]
    if isinstance(fact, bytes):
        return _text(fact, source)
    number: float | int = fact.item()
    return number if math.isfinite(number) else str(number)
