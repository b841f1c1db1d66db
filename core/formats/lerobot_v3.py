"""Reader of LeRobot v3.0: another program's data set, or a store whose views, rate or codec are to change."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from core.episode import Episode, View
from core.formats.agreement import add_note, time_gaps
from core.formats.assembly import action_space_of, put_together, size_after, task_of, transformed
from core.formats.columns import column_info, widened
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.lazy_frames import LazyFrames
from core.spaces import ActionSpace
from core.store import Store
from core.store_contents import place_of, read_contents
from core.store_layout import ACTION, STATE, ColumnInfo, StoreError, StoreInfo
from core.table_reader import TableReader


def recognises(path: Path) -> bool:
    """Whether the folder looks like LeRobot v3.0."""
    return (path / "meta/info.json").is_file() and (path / "meta/episodes").is_dir()


class LeRobotV3:
    """A data set in the layout of a store."""

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self.path, self.mapping = path, mapping
        try:
            self._contents = read_contents(path)
            self.store, self._tables = Store(path, self._contents), TableReader()
        except StoreError as error:
            raise SourceError(str(error)) from None
        self.notes = list(self.store.notes)
        self.keys: Sequence[str] = [record.episode_id for record in self.store.episodes]
        self._index = {key: number for number, key in enumerate(self.keys)}
        self.views = mapping.views or {name: ViewMapping(source=name) for name in self.store.info.views}
        self.info = self._info()

    def _info(self) -> StoreInfo:
        of_source, mapping = self.store.info, self.mapping
        if unknown := {v.source for v in self.views.values()} - set(of_source.views):
            raise SourceError(f"{self.path} has the views {list(of_source.views)}, the mapping wants {sorted(unknown)}")
        if mapping.control_hz not in (None, of_source.control_hz):
            raise SourceError(
                f"{self.path} has {of_source.control_hz} frames a second, the mapping's control_hz is "
                f"{mapping.control_hz}; leave control_hz out"
            )
        actions, state = (self._width(kind) for kind in (ACTION, STATE))
        return StoreInfo(
            control_hz=of_source.control_hz,
            views={name: size_after(view, of_source.views[view.source]) for name, view in self.views.items()},
            action_space=self._space(actions) if actions else None,
            proprioception_dims=state,
            proprioception_names=of_source.proprioception_names if mapping.proprioception is None else (),
            robot_type=mapping.robot_type or of_source.robot_type,
            columns=self._columns(),
        )

    def _columns(self) -> dict[str, ColumnInfo]:
        there = self.store.info.columns
        if unknown := set(self.mapping.columns) - set(there):
            raise SourceError(f"{self.path} has the columns {list(there)}, the mapping wants {sorted(unknown)}")
        try:
            return {name: column_info(name, *there[name]) for name in self.mapping.columns or there}
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from None

    def _space(self, dims: int) -> ActionSpace | None:
        of_source = self.store.info.action_space
        if self.mapping.action_space is None and self.mapping.actions is None:
            return of_source
        try:
            return action_space_of(self.mapping, [f"action_{number}" for number in range(dims)])
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from None

    def _width(self, kind: str) -> int:
        """Numbers a frame, by what the source says of itself; 0: none."""
        space, columns = self.store.info.action_space, self.store.info.columns
        there = {ACTION: space.dims if space else 0, STATE: self.store.info.proprioception_dims}
        pieces = self._pieces(kind)
        if pieces is None:
            return there[kind]
        there |= {name: math.prod(column.shape) for name, column in columns.items()}
        if unknown := [piece.source for piece in pieces if not there.get(piece.source)]:
            raise SourceError(f"{self.path} has no {unknown} that the mapping wants; it has {list(there)}")
        try:
            return sum(len(piece.taken(there[piece.source])) for piece in pieces)
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from None

    def _pieces(self, kind: str) -> tuple[Numbers, ...] | None:
        return self.mapping.actions if kind == ACTION else self.mapping.proprioception

    def _numbers(self, episode: int, kind: str) -> np.ndarray | None:
        pieces = self._pieces(kind)
        if pieces is None:
            return self._recorded(episode, kind)
        return put_together(pieces, lambda name: self._values(episode, name))

    def _recorded(self, episode: int, kind: str) -> np.ndarray | None:
        if kind == STATE:
            return self.store.proprioception(episode)
        return self.store.episode(episode, views=(), for_audit=True).actions

    def _values(self, episode: int, name: str) -> np.ndarray:
        is_main = name in (ACTION, STATE)
        values = self._recorded(episode, name) if is_main else self.store.columns(episode).get(name)
        if values is None:
            raise ValueError(f"it has no {name} that the mapping wants")
        return values

    def read(self, key: str) -> Episode:
        """One episode.

        Raises:
            EpisodeError: it is damaged.
        """
        number = self._index[key]
        record = self.store.episodes[number]
        try:
            self._look_at_times(number)
            columns = self.store.columns(number)
            instruction = record.instruction or self.mapping.default_instruction
            actions = self._numbers(number, ACTION)
            episode = Episode(
                episode_id=record.episode_id,
                task=self.mapping.task or (record.task if record.instruction else task_of(self.mapping, instruction)),
                instruction=instruction,
                control_hz=self.info.control_hz,
                views={name: self._view(key, view) for name, view in self.views.items() if view.source in record.views},
                actions=actions,
                action_space=None if actions is None else self.info.action_space,
                proprioception=self._numbers(number, STATE),
                columns={name: widened(name, columns[name]) for name in self.info.columns if name in columns},
                is_labelled=record.is_labelled,
                split=record.split,
                extra=record.extra,
            )
            episode.validate()
        except ValueError as error:
            raise EpisodeError(self.path, key, str(error)) from None
        return episode

    def _look_at_times(self, episode: int) -> None:
        """A store states times by its rate: what those of the source tell beyond that is noted, or refused, here."""
        file, first = place_of(self.path, self._contents, episode)
        if "timestamp" not in self._tables.columns(file):
            return
        rows = self._tables.rows(file, first, first + self.store.episodes[episode].length, ["timestamp"])
        if gaps := time_gaps(rows["timestamp"].to_numpy().astype(np.float64), self.info.control_hz):
            add_note(self.notes, f"{self.keys[episode]}: {gaps}")

    def _view(self, key: str, view: ViewMapping) -> View:
        number = self._index[key]

        def read(start: int, stop: int) -> np.ndarray:
            try:
                return self.store.frames(number, view.source, np.arange(start, stop))
            except StoreError as error:
                raise EpisodeError(self.path, key, str(error)) from None

        frames = LazyFrames(self.store.episodes[number].length, self.store.info.views[view.source], read)
        extrinsics = self.store.extrinsics(number, view.source)
        return View(
            frames=transformed(frames, view),
            extrinsics=None if extrinsics is None else _turned(extrinsics, view.rotate_deg),
        )


def _turned(extrinsics: Float[np.ndarray, "frames 3 4"], clockwise_deg: int) -> Float[np.ndarray, "frames 3 4"]:
    """Of the camera whose picture is the turned one: itself turned about the axis that it looks along."""
    turn = Rotation.from_euler("z", clockwise_deg, degrees=True).as_matrix()
    return (turn @ extrinsics).astype(np.float32)
