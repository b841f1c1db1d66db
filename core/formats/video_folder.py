"""Folders of video clips, as people bring them: SOURCE/EPISODE/VIEW.mp4, or SOURCE/EPISODE.mp4 with one view.

Beside the clips of an episode may lie actions.csv, proprioception.csv (or .parquet) and instruction.txt, and in SOURCE
a source.yaml with the keys of a mapping.
"""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.config import ConfigError, load_config
from core.episode import Episode, View
from core.formats.agreement import add_note, check_finite, check_fits, info_of
from core.formats.assembly import action_space_of, put_together, task_of, transformed
from core.formats.clips import MEDIA_DAMAGE, Clip, frames_of, probe
from core.formats.csv_tables import Table, read_table
from core.formats.interface import EpisodeError, SourceError, naming_episode
from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.lazy_frames import LazyFrames
from core.store_layout import StoreInfo

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".3gp")
TABLES = (".csv", ".parquet")
NAMES = {"actions": ".csv", "proprioception": ".csv", "instruction": ".txt"}
"""What is read beside clips, and its usual ending."""
ONLY_VIEW = "video"
"""Name of the view where an episode is one file."""
SETTINGS = "source.yaml"
MOST_TEXT_BYTES = 100_000
MOST_SLIPS = 10
"""Names with a slip that are noted one by one."""
SLACK_STEPS = 0.1
"""Part of a control step that the last one may lack: clocks of cameras are not that exact."""


def recognises(path: Path) -> bool:
    """Whether the path is a folder of clips or of folders of clips."""
    return path.is_dir() and not (path / "meta/info.json").exists() and any(_clips_of(path).values())


def mapping_of(path: Path, mapping: Mapping) -> Mapping:
    """The mapping in SOURCE/source.yaml, key by key replaced by what `mapping` sets.

    Raises:
        SourceError: the file is damaged, has an unknown key, or does not go together with `mapping`.
    """
    file = path / SETTINGS
    if not file.is_file():
        return mapping
    try:
        if file.stat().st_size > MOST_TEXT_BYTES:
            raise SourceError(f"{file} has {file.stat().st_size} bytes; settings have at most {MOST_TEXT_BYTES}")
        own = load_config(Mapping, file)
        keys = {key: getattr(own, key) for key in own.model_fields_set}
        return Mapping(**(keys | {key: getattr(mapping, key) for key in mapping.model_fields_set}))
    except SourceError:
        raise
    except (ConfigError, OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{file} cannot be used: {error}") from None


class VideoFolder:
    """Episodes of a folder of clips; a key is the name of the episode's folder, or of its only file.

    Frame `i` is the one shown nearest to `i / control_hz` seconds after the first frame of its clip: clips of an
    episode are taken to begin at the same moment. Where the actions are one row fewer than the frames, the last frame,
    after which nothing is known to be done, is dropped. Most bytes that change inside of compressed pictures give other
    pictures that no decoder notices; only what it notices is refused.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        """Find the episodes, and look into them until every view's size is known.

        Raises:
            SourceError: there are none, none can be read, or the mapping does not fit.
        """
        self._path = path
        self.mapping = mapping_of(path, mapping)
        self.notes: list[str] = []
        self._problems: list[str] = []
        self._clips = {name: clips for name, clips in _clips_of(path).items() if clips}
        self.keys: Sequence[str] = tuple(self._clips)
        if not self._clips:
            raise SourceError(
                f"{path} has no clips: put them at EPISODE/VIEW.mp4 or EPISODE.mp4 in it ({', '.join(ENDINGS)})"
            )
        self._note_what_is_left_out()
        self._note_what_is_not_read()
        self._note_missing_tables()
        self._control_hz = self.mapping.control_hz
        self.info = self._described()

    def read(self, key: str) -> Episode:
        """One episode; clips are decoded when frames are looked at.

        Raises:
            EpisodeError: a clip or table is damaged, or they differ in length.
        """
        if key not in self._clips:
            raise EpisodeError(self._path, key, f"there is no such episode; there are {list(self._clips)[:5]}, ...")
        with naming_episode(self._path / key, key, MEDIA_DAMAGE):
            episode, names = self._episode(key)
            check_fits(info_of(episode, names, self.mapping), self.info)
        return episode

    def _described(self) -> StoreInfo:
        """What holds for all episodes, from as few of them as show every view, the actions and the state."""
        views: dict[str, tuple[int, int]] = {}
        info: StoreInfo | None = None
        wanted = set(self.mapping.views) or {name for clips in self._clips.values() for name, _ in clips}
        for key in self.keys:
            try:
                with naming_episode(self._path / key, key, MEDIA_DAMAGE):
                    episode, names = self._episode(key)
            except EpisodeError as error:
                self._problems.append(str(error))
                self._note(str(error))
                continue
            one = info_of(episode, names, self.mapping)
            views = {**one.views, **views}
            info = info or one
            if info.action_space is None or not info.proprioception_dims:
                parts = {"action_space": info.action_space or one.action_space, "columns": info.columns or one.columns}
                state = one if not info.proprioception_dims else info
                parts |= {name: getattr(state, name) for name in ("proprioception_dims", "proprioception_names")}
                info = StoreInfo(**{**vars(info), **parts})
            if wanted <= set(views) and not self._has_more_tables(info):
                break
        if info is None:
            raise SourceError(f"no episode of {self._path} can be read; the first problem: {self._problems[0]}")
        return StoreInfo(**{**vars(info), "views": views})

    def _has_more_tables(self, info: StoreInfo) -> bool:
        """Whether some episode has a table of which nothing is known yet."""
        lacking = [("actions", info.action_space is None), ("proprioception", not info.proprioception_dims)]
        wanted = [name for name, lacks in lacking if lacks and getattr(self.mapping, name) != ()]
        return any(_tables(self._path / key, name) for key in self.keys for name in wanted)

    def _note_missing_tables(self) -> None:
        for name in ("actions", "proprioception"):
            without = [key for key in self.keys if not _tables(self._path / key, name)]
            if without and len(without) < len(self.keys):
                named = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
                self._note(f"{len(without)} of {len(self.keys)} episodes have no {name}: {named}")

    def _episode(self, key: str) -> tuple[Episode, tuple[str, ...]]:
        """An episode, and the names of its proprioception."""
        mapping, folder = self.mapping, self._path / key
        views, clips = self._views(key)
        hz = self._rate(clips)
        steps = _steps(clips, hz)
        tables = {name: _table(folder, name) for name in ("actions", "proprioception")}
        aligned = {name: table.at_steps(steps, hz) for name, table in tables.items() if table is not None}
        if (moves := tables["actions"]) is not None and _may_add_up(mapping):
            moves.require_rate(hz)
        frames = min([steps, *(table.length for table in aligned.values())])
        if frames < steps:
            self._note(f"{key}: the last frame has no row in {' or '.join(aligned)} and is dropped")
        cut = {name: table.first(frames) for name, table in aligned.items()}
        actions, action_names = _numbers(mapping.actions, cut.get("actions"), "actions", mapping.columns)
        state, state_names = _numbers(mapping.proprioception, cut.get("proprioception"), "proprioception", ())
        instruction = _text(folder / (mapping.instruction or "instruction.txt")) or mapping.default_instruction
        if not instruction:
            self._note("Some episodes have no instruction: write EPISODE/instruction.txt, or set default_instruction.")
        episode = Episode(
            episode_id=key,
            task=task_of(mapping, instruction),
            instruction=instruction,
            control_hz=hz,
            views={name: View(frames=self._frames(key, clips[name], view, hz, frames)) for name, view in views.items()},
            actions=actions,
            action_space=None if actions is None else action_space_of(mapping, action_names),
            proprioception=state,
            columns={name.replace("/", "."): _column(list(cut.values()), name) for name in mapping.columns},
            is_labelled=actions is not None,
            extra=self._scene(folder),
        )
        episode.validate()
        check_finite(episode)
        return episode, state_names

    def _views(self, key: str) -> tuple[dict[str, ViewMapping], dict[str, Clip]]:
        """The views of an episode, and what their clips hold."""
        there = dict(self._clips[key])
        if len(there) < len(self._clips[key]):
            raise ValueError(f"two of {[file.name for _, file in self._clips[key]]} differ only in their endings")
        wanted = self.mapping.views or {name: ViewMapping(source=name) for name in there}
        views = {name: view for name, view in wanted.items() if view.source in there}
        if not views:
            raise ValueError(
                f"it has the clips {list(there)}, the mapping's views want {[v.source for v in wanted.values()]}"
            )
        clips = {name: probe(there[view.source]) for name, view in views.items()}
        for name, clip in clips.items():
            if not clip.is_square:
                self._note(f"{key}: pixels of view {name} are not square; its pictures are read as they are stored")
        return views, clips

    def _rate(self, clips: dict[str, Clip]) -> float:
        """The mapping's, or that of the first clip of the source that can be read."""
        if self._control_hz is None:
            clip = next(iter(clips.values()))
            if clip.rate is None:
                raise ValueError(
                    f"the time between frames of {clip.path.name} varies; set control_hz in the mapping, at most "
                    f"{1 / clip.interval_s:.1f}"
                )
            self._control_hz = clip.rate
            self._note(
                f"control_hz is {clip.rate:g}, the rate of {clip.path.name}; frames of all clips are taken at it."
            )
        return self._control_hz

    def _frames(self, key: str, clip: Clip, view: ViewMapping, hz: float, frames: int) -> LazyFrames | np.ndarray:
        decode = frames_of(clip, clip.at_rate(hz, frames))

        def read(start: int, stop: int) -> np.ndarray:
            with naming_episode(clip.path, key, MEDIA_DAMAGE):
                return decode(start, stop)

        return transformed(LazyFrames(frames, clip.size, read), view)

    def _scene(self, folder: Path) -> dict[str, float | int | str]:
        if not self.mapping.scene:
            return {}
        scene = _text(folder / self.mapping.scene)
        if not scene:
            raise ValueError(
                f"there is no {self.mapping.scene} in its folder that names the scene, as mapping.scene says"
            )
        return {"scene": scene}

    def _note_what_is_left_out(self) -> None:
        flat = [key for key in self.keys if (self._path / key).is_file()]
        if flat and len(flat) < len(self.keys):
            raise SourceError(
                f"{self._path} has clips both beside and in its folders, for instance {flat[0]}; use one layout"
            )
        known = {*self.keys, SETTINGS}
        others = sorted(one.name for one in self._path.iterdir() if one.name not in known and one.name[0] != ".")
        if others:
            self._note(f"{others[:5]}{' and more' if len(others) > 5 else ''}: no clips, left out")
        wanted = {view.source for view in self.mapping.views.values()}
        unwanted = sorted({name for clips in self._clips.values() for name, _ in clips} - wanted) if wanted else []
        if unwanted:
            self._note(f"Views {unwanted} are not in the mapping's views and are left out.")

    def _note_what_is_not_read(self) -> None:
        """Files beside the clips whose names say nothing here: after a slip an episode would lack its actions."""
        texts = (self.mapping.instruction or "instruction.txt", self.mapping.scene)
        known = {Path(text).parts[0] for text in texts if text}
        known |= {name + ending for name in ("actions", "proprioception") for ending in TABLES}
        slips: dict[tuple[str, str], list[str]] = {}
        others: set[str] = set()
        for key in (key for key in self.keys if (self._path / key).is_dir()):
            there = {one.name for one in (self._path / key).iterdir() if one.name[0] != "."}
            for name in there - known - {clip.name for _, clip in self._clips[key]}:
                meant = _meant(name)
                if meant in known - there:
                    slips.setdefault((name, meant), []).append(key)
                else:
                    others.add(name)
        for (name, meant), keys in sorted(slips.items())[:MOST_SLIPS]:
            self._note(f"{name} is not read, in {len(keys)} episodes, the first {keys[0]}: is {meant} meant?")
        if others or len(slips) > MOST_SLIPS:
            named = sorted(others | {name for name, _ in sorted(slips)[MOST_SLIPS:]})
            what = f"{named[:5]}{' and more' if len(named) > 5 else ''} in folders of episodes"
            self._note(f"{what}: neither clips nor tables nor texts that are known, left out")

    def _note(self, sentence: str) -> None:
        add_note(self.notes, sentence)


def _clips_of(path: Path) -> dict[str, list[tuple[str, Path]]]:
    """Name of view and file of the clips of each episode, in order of the episodes' names."""
    try:
        found = {}
        for one in sorted(path.iterdir()):
            if one.name.startswith("."):
                continue
            if one.is_dir():
                clips = sorted(file for file in one.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
                found[one.name] = [(file.stem, file) for file in clips]
            elif one.suffix.lower() in ENDINGS:
                found[one.name] = [(ONLY_VIEW, one)]
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from None
    for name in found:
        if not name.isprintable():
            raise SourceError(f"the name {name!r} in {path} cannot be stored; rename it")
    return found


def _meant(name: str) -> str:
    """The name of a table or text that resembles this one; empty where there is none."""
    stem, ending = Path(name.lower()).stem, Path(name.lower()).suffix
    near = difflib.get_close_matches(stem, NAMES, n=1, cutoff=0.65)
    return near[0] + (ending if ending in TABLES else NAMES[near[0]]) if near else ""


def _may_add_up(mapping: Mapping) -> bool:
    """Whether actions are increments, as far as is known: leaving a row out would change where they lead."""
    space = mapping.action_space
    return mapping.actions != () and (space is None or space.kind == "unspecified" or bool(space.is_increment.any()))


def _steps(clips: dict[str, Clip], hz: float) -> int:
    """Control steps that every clip of an episode lasts."""
    seconds = {name: clip.duration_s for name, clip in clips.items()}
    if max(seconds.values()) - min(seconds.values()) > 1 / hz:
        lasts = ", ".join(f"{name} {duration:.3f} s" for name, duration in seconds.items())
        raise ValueError(f"its clips differ in length: {lasts}; trim them to begin and end at the same moments")
    steps = math.floor(min(seconds.values()) * hz + SLACK_STEPS)
    if steps < 1:
        raise ValueError(f"it lasts {min(seconds.values()):.3f} s, less than one control step of {1 / hz:.3f} s")
    return steps


def _tables(folder: Path, name: str) -> list[Path]:
    return [file for ending in TABLES if (file := folder / f"{name}{ending}").exists()]


def _table(folder: Path, name: str) -> Table | None:
    files = _tables(folder, name)
    if len(files) > 1:
        raise ValueError(f"there are {files[0].name} and {files[1].name}; keep one")
    return read_table(files[0]) if files else None


def _numbers(
    pieces: tuple[Numbers, ...] | None, table: Table | None, name: str, others: Sequence[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The mapping's columns of a table, or all of them, side by side, and their names."""
    if pieces == () or table is None:
        return None, ()
    if pieces is None:
        pieces = tuple(Numbers(source=column) for column in table.names if column not in others)
    if not pieces:
        raise ValueError(f"{name} has no columns of numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused with its frame
        return put_together(pieces, table.numbers), tuple(piece.source for piece in pieces)


def _column(tables: Sequence[Table], name: str) -> np.ndarray:
    for table in tables:
        if name in table.names:
            return table.values(name)
    raise ValueError(f"no table has the column {name}, which the mapping's columns name")


def _text(file: Path) -> str:
    """The words of a small text file; none where there is none."""
    if not file.is_file():
        return ""
    content = file.read_bytes()[: MOST_TEXT_BYTES + 1]
    if len(content) > MOST_TEXT_BYTES:
        raise ValueError(f"{file.name} has over {MOST_TEXT_BYTES} bytes; a sentence is meant")
    try:
        return " ".join(content.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
