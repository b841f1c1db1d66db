"""HDF5 files of demonstrations: LIBERO and robomimic (`data/demo_0`, ...), ManiSkill (`traj_0`, ..., with images)."""

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from core.episode import Episode, View
from core.formats.agreement import add_note, check_finite, check_fits, info_of
from core.formats.assembly import action_space_of, put_together, task_of, transformed
from core.formats.columns import widened
from core.formats.hdf5_file import found, pictures_at
from core.formats.hdf5_layouts import (
    HOW_TO_GET_IMAGES,
    MANISKILL,
    Facts,
    Layout,
    Rows,
    beside,
    camera_path,
    cameras_of,
    check_control_mode,
    check_rows,
    extra_of,
    facts_beside,
    layout_of,
    rows_of,
    split_of,
    values_of,
)
from core.formats.interface import EpisodeError, SourceError, naming_episode
from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.lazy_frames import LazyFrames
from core.store_layout import StoreInfo

ENDINGS = (".hdf5", ".h5")
MOST_HZ = 10_000
LIBERO_SCENE = re.compile(r"^([A-Z_]+SCENE\d+)_")
"""What stands before the instruction in the name of a LIBERO file, as in KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5."""


def recognises(path: Path) -> bool:
    """Whether the path is an HDF5 file or a folder with some."""
    return bool(path.suffix in ENDINGS if path.is_file() else _files(path))


class Hdf5:
    """Episodes of an HDF5 file or of all in a folder; a key is `file.hdf5/data/demo_12`, the file relative to the path.

    ManiSkill keeps T + 1 observations for T actions; the last, after which nothing was done, is dropped. Where LIBERO's
    observations are from after the action of the same row, the first action and the last observation are dropped, so
    that a frame again is what was seen just before its action. Bytes that were changed inside of uncompressed pictures
    look like pictures: HDF5 has no checksum for them.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        """Find the episodes.

        Raises:
            SourceError: there are none, none has images, files do not fit together, or the mapping does not fit.
        """
        self._path, self._mapping = path, mapping
        self._places: dict[str, _Place] = {}
        self._problems: list[str] = []
        self._first_action: int | None = None
        self.notes: list[str] = []
        files = _files(path)
        if not files:
            raise SourceError(f"{path} is no file and no folder with files that end in {' or '.join(ENDINGS)}")
        self.info = self._joined([info for file in files if (info := self._opened(file)) is not None])
        self.keys: Sequence[str] = tuple(self._places)

    def read(self, key: str) -> Episode:
        """One episode; its frames are read from the file when they are looked at.

        Raises:
            EpisodeError: it is damaged, its parts differ in length, or it does not fit the other episodes.
        """
        if key not in self._places:
            raise EpisodeError(self._path, key, f"there is no such episode; there are {list(self._places)[:5]}, ...")
        with naming_episode(self._places[key].file, key):
            episode, names = self._episode(key)
            check_fits(info_of(episode, names, self._mapping), self.info)
        return episode

    def _opened(self, file: Path) -> StoreInfo | None:
        """What the first readable episode of a file says of them all; an unreadable file becomes one unreadable key."""
        name = file.name if file == self._path else file.relative_to(self._path).as_posix()
        try:
            with naming_episode(file, name):
                name.encode()  # a name that is no UTF-8 could not be stored
                with h5py.File(file, "r") as opened:
                    layout, groups, others = layout_of(opened)
                described = beside(file) if layout is MANISKILL else None
        except EpisodeError as error:
            self._places[name] = _Place(file, "", None, None, str(error).partition(f"episode {name}: ")[2])
            self._problem(f"{error}; the whole file counts as one damaged episode")
            return None
        if others:
            self._note(f"{name}: {others[:5]} beside the episodes are left out")
        if layout is MANISKILL and described is None:
            self._note(f"{name}: there is no {file.with_suffix('.json').name} beside it, which would tell the seeds")
        places = {f"{name}/{group}": _Place(file, group, layout, described) for group in groups}
        self._places |= places
        for key in places:
            try:
                with naming_episode(file, key):
                    return info_of(*self._episode(key), self._mapping)
            except EpisodeError as error:
                self._problem(str(error))
        return None

    def _joined(self, infos: list[StoreInfo]) -> StoreInfo:
        """What holds for all files."""
        if not infos:
            raise SourceError(f"no episode of {self._path} can be read; the first problem: {self._problems[0]}")
        views: dict[str, tuple[int, int]] = {}
        for info in infos:
            views = info.views | views
        joined = StoreInfo(**{**vars(infos[0]), "views": views})
        for info in infos:
            try:
                check_fits(info, joined)
            except ValueError as error:
                raise SourceError(f"files of {self._path} do not fit together: {error}") from None
        return joined

    def _problem(self, sentence: str) -> None:
        self._problems.append(sentence)
        self._note(sentence)

    def _note(self, sentence: str) -> None:
        add_note(self.notes, sentence)

    def _episode(self, key: str) -> tuple[Episode, tuple[str, ...]]:
        """The episode, and the names of its proprioception."""
        place = self._places[key]
        if place.layout is None:
            raise ValueError(place.problem)
        with h5py.File(place.file, "r") as file:
            group = found(file, place.group)
            if not isinstance(group, h5py.Group):
                raise ValueError(f"{place.group} is no group")
            number = int(place.group.rpartition("_")[2])
            facts = Facts(file, group, place.layout, facts_beside(place.described, number))
            rows = rows_of(facts, self._first_action)
            episode, names = self._assembled(key, facts, rows)
        episode.validate()
        check_finite(episode)
        self._first_action = rows.first_action
        return episode, names

    def _assembled(self, key: str, facts: Facts, rows: Rows) -> tuple[Episode, tuple[str, ...]]:
        mapping, group = self._mapping, facts.group

        def find(source: str) -> np.ndarray:
            return values_of(group, source, rows)

        instruction = self._instruction(facts, key)
        actions, names = _side_by_side(_pieces(mapping.actions, ("actions",), group), find)
        state, state_names = _side_by_side(_pieces(mapping.proprioception, facts.layout.states, group), find)
        check_control_mode(mapping, facts)
        if rows.first_action:
            self._note(
                "Observations were recorded after the action of the same row, as LIBERO does: the first action and the "
                "last observation of such episodes are dropped, so that a frame comes just before its action."
            )
        episode = Episode(
            episode_id=key,
            task=mapping.task or task_of(mapping, instruction or str(facts.get("env_id", "env_args/env_name") or "")),
            instruction=instruction,
            control_hz=self._control_hz(facts),
            views={
                name: View(frames=transformed(self._frames(key, facts, view, rows), view))
                for name, view in self._views(facts).items()
            },
            actions=actions,
            action_space=None if actions is None else action_space_of(mapping, names),
            proprioception=state,
            columns={name.replace("/", "."): widened(name, find(name)) for name in mapping.columns},
            split=split_of(facts),
            extra=self._scene(facts, key) | extra_of(facts, mapping),
        )
        return episode, state_names

    def _instruction(self, facts: Facts, key: str) -> str:
        """From the mapping's place, else the name of LIBERO's file, else from where LIBERO and robocasa put it.

        LIBERO's benchmark gives the name, and so did those who trained published policies on its files; the text inside
        is worded otherwise in some (rlds_dataset_builder of openvla, regenerate_libero_dataset.py).
        """
        stem = self._places[key].file.stem
        if self._mapping.instruction:
            said = facts.get(self._mapping.instruction)
            if said is None and not self._mapping.default_instruction:
                raise ValueError(
                    f"there is no {self._mapping.instruction} that holds the instruction; see the mapping's instruction"
                )
        elif facts.layout is not MANISKILL and stem.endswith("_demo") and not self._mapping.default_instruction:
            said = LIBERO_SCENE.sub("", stem.removesuffix("_demo")).replace("_", " ")
            self._note(f"{stem}: the instruction is taken from the file's name.")
        else:
            said = facts.get("problem_info/language_instruction", "ep_meta/lang")
        if isinstance(said, list) and all(isinstance(word, str) for word in said):
            said = " ".join(said)
        if said is not None and not isinstance(said, str):
            raise ValueError(f"the instruction is {said!r}, not a text; see the mapping's instruction")
        words = (said or "").strip().strip('"').strip() or self._mapping.default_instruction
        if not words:
            self._note("Episodes have no instruction; set default_instruction in the mapping.")
        return words

    def _scene(self, facts: Facts, key: str) -> dict[str, float | int | str]:
        """The scene that stands in the name of a LIBERO file."""
        named = LIBERO_SCENE.match(self._places[key].file.stem)
        return {"scene": named[1]} if named and facts.layout is not MANISKILL else {}

    def _control_hz(self, facts: Facts) -> float:
        said = facts.get("env_args/env_kwargs/control_freq", "env_kwargs/sim_config/control_freq")
        wanted = self._mapping.control_hz
        if wanted is None and said is None:
            raise ValueError("the file does not say how many frames a second it has; set control_hz in the mapping")
        if said is not None and not (isinstance(said, int | float) and 0 < said <= MOST_HZ):
            raise ValueError(f"control_freq is {said!r}, not a rate in Hz")
        if wanted is not None and said is not None and wanted != said:
            self._note(f"The source says {said} Hz, the mapping's control_hz {wanted}, which is taken.")
        return float(wanted or said)

    def _views(self, facts: Facts) -> dict[str, ViewMapping]:
        if self._mapping.views:
            return {
                name: view.model_copy(update={"source": camera_path(facts.group, view.source)})
                for name, view in self._mapping.views.items()
            }
        cameras = cameras_of(facts.group, facts.layout)
        if not cameras:
            raise ValueError(f"there are no pictures under obs/: {HOW_TO_GET_IMAGES}")
        return {name: ViewMapping(source=path) for name, path in cameras.items()}

    def _frames(self, key: str, facts: Facts, view: ViewMapping, rows: Rows) -> LazyFrames:
        place, path = self._places[key], view.source
        dataset = pictures_at(facts.group, path)
        check_rows(path, len(dataset), rows.observations)
        shape = dataset.shape

        def read(start: int, stop: int) -> np.ndarray:
            # Opened for each block: that costs a millisecond, and no handle is there to be inherited by a fork.
            with naming_episode(place.file, key), h5py.File(place.file, "r") as file:
                holder = found(file, place.group)
                if not isinstance(holder, h5py.Group):
                    raise ValueError(f"{place.group} is no group any more")
                frames = pictures_at(holder, path)
                if frames.shape != shape:
                    raise ValueError(f"{path} now has shape {frames.shape}, it had {shape}")
                return frames[start:stop]

        return LazyFrames(rows.frames, shape[1:3], read)


class _Place(NamedTuple):
    file: Path
    group: str
    layout: Layout | None
    """None: the file cannot be read."""
    described: dict[str, Any] | None
    problem: str = ""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found_files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sorted(file for file in found_files if file.suffix in ENDINGS and file.is_file())


def _pieces(wanted: tuple[Numbers, ...] | None, usual: Sequence[str], group: h5py.Group) -> tuple[Numbers, ...]:
    """The mapping's pieces, or those of the usual ones that are there."""
    if wanted is not None:
        return wanted
    return tuple(Numbers(source=path) for path in usual if found(group, path) is not None)


def _side_by_side(
    pieces: Sequence[Numbers], find: Callable[[str], np.ndarray]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The pieces put together, and a name for each of their numbers."""
    names: list[str] = []
    for piece in pieces:
        values = find(piece.source)
        columns = piece.taken(math.prod(values.shape[1:]))
        stem = piece.source.removeprefix("obs/").replace("/", ".")
        names += [f"{stem}_{column}" for column in columns]
        if not columns:
            raise ValueError(f"{piece.source} has no numbers: its shape is {values.shape}")
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused with its frame
        return put_together(pieces, find), tuple(names)
