"""Writing stores: independent parts, then the files that join them."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from core.episode import Episode
from core.run import fingerprint_of, fingerprint_of_file, write_json
from core.store_layout import (
    ACTION,
    DATA,
    EPISODES,
    IMAGES,
    OURS,
    STATE,
    StoreError,
    StoreInfo,
    episode_row,
    episode_rows,
    episode_schema,
    frame_schema,
    frame_table,
    info_to_json,
    list_widths,
    matrix,
    numbers_of,
    part_file,
    publish,
    replace_table,
    temporary,
)
from core.video import VideoWriter


def is_part_done(path: str | Path, part: int) -> bool:
    """Whether the part was written to its end."""
    return part_file(path, EPISODES, part).is_file()


def write_part(
    path: str | Path,
    part: int,
    episodes: Iterable[Episode],
    *,
    info: StoreInfo,
    first_episode: int,
    first_frame: int,
    tasks: Sequence[str],
) -> None:
    """Write one part, an episode at a time; several processes may write different parts of one store.

    Args:
        path: the store.
        part: its number, from 0.
        episodes: taken one at a time; numbers are kept as float32.
        info: the same for every part.
        first_episode: index of the part's first episode in the whole store.
        first_frame: index of the part's first frame in the whole store.
        tasks: all instructions of the whole store, sorted.

    Raises:
        ValueError: an episode does not fit `info`, or its instruction is not in `tasks`.
    """
    path = Path(path)
    _withdraw(path, part)
    task_indices = {instruction: number for number, instruction in enumerate(tasks)}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        files = _PartFiles(path, part, info, stack)
        for episode in episodes:
            _check(episode, info, task_indices)
            starts = {name: files.videos[name].frames / info.control_hz for name in episode.views}
            row = episode_row(episode, info, part, starts) | {
                "episode_index": first_episode + len(rows),
                "task_index": task_indices[episode.instruction],
                "dataset_from_index": first_frame,
                "dataset_to_index": first_frame + episode.length,
            }
            files.append(episode, row)
            rows.append(row)
            first_frame += episode.length
        if not rows:
            raise StoreError(f"part {part} of {path} has no episodes; each part needs at least one")
        files.commit()
    replace_table(pa.Table.from_pylist(rows, schema=episode_schema(info)), part_file(path, EPISODES, part))


class _PartFiles:
    """The data file and the videos of one part, under temporary names until `commit`."""

    def __init__(self, path: Path, part: int, info: StoreInfo, stack: ExitStack) -> None:
        self.info = info
        self.data_file = part_file(path, DATA, part)
        self.video_files = {view: part_file(path, f"videos/{IMAGES}{view}", part) for view in info.views}
        for file in (self.data_file, *self.video_files.values()):
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(temporary(file).unlink, missing_ok=True)
        self.data = stack.enter_context(pq.ParquetWriter(temporary(self.data_file), frame_schema(info)))
        self.videos = {
            view: stack.enter_context(VideoWriter(temporary(file), info.views[view], info.control_hz))
            for view, file in self.video_files.items()
        }

    def append(self, episode: Episode, row: dict[str, Any]) -> None:
        self.data.write_table(frame_table(episode, self.info, row), row_group_size=episode.length)
        for name, view in episode.views.items():
            self.videos[name].append(view.frames)

    def commit(self) -> None:
        self.data.close()
        publish(self.data_file)
        for view, file in self.video_files.items():
            if self.videos[view].frames:
                self.videos[view].finish()
                publish(file)


def finish_store(path: str | Path, info: StoreInfo, parts: int, tasks: Sequence[str]) -> str:
    """Complete a store of `parts` parts and give its fingerprint: a hash of all that was written.

    Raises:
        StoreError: a part is missing, damaged, one too many, or does not go on where the one before ended.
    """
    path = Path(path)
    episodes = [row for part in range(parts) for row in _checked_rows(path, part, tasks)]
    _require_contiguous(path, episodes)
    frames = episodes[-1]["dataset_to_index"]
    index = pd.Index(list(tasks), name="task")
    table = pa.Table.from_pandas(pd.DataFrame({"task_index": range(len(tasks))}, index=index))
    replace_table(table, path / "meta/tasks.parquet")
    statistics = {name: _statistics(path, parts, name) for name in (ACTION, STATE) if name in list_widths(info)}
    write_json(path / "meta/stats.json", {name: numbers for name, numbers in statistics.items() if numbers["count"][0]})
    described = info_to_json(info, len(episodes), frames, len(tasks))
    files = sorted(file for part in range(parts) for file in _files_of(path, part, info))
    hashes = {str(file.relative_to(path)): fingerprint_of_file(file) for file in files}
    fingerprint = fingerprint_of({"info": described, "tasks": list(tasks), "files": hashes})
    described[OURS] |= {"fingerprint": fingerprint, "parts": parts}
    write_json(path / "meta/info.json", described)
    return fingerprint


def _withdraw(path: Path, part: int) -> None:
    """Make an older version of the part, and the store it belonged to, incomplete before anything is written."""
    videos = path.glob(f"videos/*/chunk-000/file-{part:03d}.mp4")
    for file in (path / "meta/info.json", part_file(path, EPISODES, part), part_file(path, DATA, part), *videos):
        file.unlink(missing_ok=True)


def _files_of(path: Path, part: int, info: StoreInfo) -> list[Path]:
    videos = [part_file(path, f"videos/{IMAGES}{view}", part) for view in info.views]
    return [part_file(path, DATA, part), part_file(path, EPISODES, part), *(file for file in videos if file.is_file())]


def _check(episode: Episode, info: StoreInfo, task_indices: dict[str, int]) -> None:
    episode.validate()
    where = f"episode {episode.episode_id}"
    sizes = {name: view.frames.shape[1:3] for name, view in episode.views.items()}
    if wrong := {name: size for name, size in sizes.items() if info.views.get(name) != size}:
        raise StoreError(f"{where}: views {wrong} do not fit the store's views {info.views} (height, width)")
    if episode.control_hz != info.control_hz:
        raise StoreError(f"{where} has {episode.control_hz} Hz, the store {info.control_hz}; a store has one rate")
    if episode.actions is not None and episode.action_space != info.action_space:
        raise StoreError(f"{where}: action space {episode.action_space} is not the store's, {info.action_space}")
    if episode.proprioception is not None and episode.proprioception.shape[1] != info.proprioception_dims:
        dims = episode.proprioception.shape[1]
        raise StoreError(f"{where}: {dims} numbers of proprioception, the store has {info.proprioception_dims}")
    if episode.instruction not in task_indices:
        raise StoreError(f"{where}: instruction {episode.instruction!r} is not in `tasks`; list those of all episodes")
    for name, values in numbers_of(episode).items():
        if values is not None and not np.isfinite(values).all():
            frame = int(np.argwhere(~np.isfinite(values).reshape(len(values), -1).all(1))[0, 0])
            raise StoreError(f"{where}: {name} of frame {frame} is not finite; mend or leave out the episode")


def _checked_rows(path: Path, part: int, tasks: Sequence[str]) -> list[dict[str, Any]]:
    if not is_part_done(path, part):
        raise StoreError(f"part {part} of {path} is not complete; run the stage that writes it again")
    rows = episode_rows(path, part)
    needed = {part_file(path, DATA, part)}
    needed |= {part_file(path, f"videos/{IMAGES}{view}", part) for row in rows for view in row["views"]}
    if missing := sorted(str(file) for file in needed if not file.is_file()):
        raise StoreError(f"part {part} of {path} lost {', '.join(missing)}; write the part again")
    found = pq.read_metadata(part_file(path, DATA, part)).num_rows
    if found != sum(row["length"] for row in rows):
        raise StoreError(f"part {part} of {path} holds {found} frames, its table states another number; write it again")
    for row in rows:
        if list(tasks[row["task_index"] : row["task_index"] + 1]) != row["tasks"]:
            raise StoreError(f"part {part} of {path} was written with other `tasks`; write every part with the same")
    return rows


def _require_contiguous(path: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        raise StoreError(f"{path} would have no episodes; a store needs at least one part")
    start = 0
    for number, row in enumerate(rows):
        if (row["episode_index"], row["dataset_from_index"]) != (number, start):
            raise StoreError(
                f"{path}, part {row['data/file_index']}: {row['episode_id']} says episode {row['episode_index']}, "
                f"first frame {row['dataset_from_index']}; {number} and {start} follow from the parts before it"
            )
        start = row["dataset_to_index"]
    names = pd.Series([row["episode_id"] for row in rows])
    if names.duplicated().any():
        raise StoreError(f"{path} holds {names[names.duplicated()].iloc[0]} twice; episode ids must be unique")
    parts = {part_file(path, kind, row["data/file_index"]) for row in rows for kind in (DATA, EPISODES)}
    if extra := {file for kind in (DATA, EPISODES) for file in (path / kind).glob("*/*.parquet")} - parts:
        raise StoreError(f"{path} holds files of other parts, {sorted(map(str, extra))}; delete them")


def _statistics(path: Path, parts: int, column: str) -> dict[str, list[float]]:
    """Of every frame that has the numbers, as LeRobot defines it: hidden actions and held-out episodes included."""
    count, mean, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for part in range(parts):
        for batch in pq.ParquetFile(part_file(path, DATA, part)).iter_batches(columns=[column]):
            values = matrix(pa.chunked_array([batch[column]])).astype(np.float64)
            values = values[~np.isnan(values).all(1)]
            if not len(values):
                continue
            total = count + len(values)
            shift = values.mean(0) - mean
            squares = squares + ((values - values.mean(0)) ** 2).sum(0) + shift**2 * (count * len(values) / total)
            mean = mean + shift * (len(values) / total)
            count, low, high = total, np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    numbers = {"min": low, "max": high, "mean": mean, "std": np.sqrt(squares / max(count, 1))}
    return {name: np.atleast_1d(value).tolist() for name, value in numbers.items()} | {"count": [count]}
