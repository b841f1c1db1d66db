"""Joining the parts of a store: numbers that hold in the whole of it, tasks, statistics, splits, hashes."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from core.duplicates import Traits
from core.run import fingerprint_of, fingerprint_of_file, say, write_json
from core.splits import SplitRule, manifest_of, split_by_rule, straddling
from core.statistics import describe
from core.store_layout import (
    ACTION,
    DATA,
    EPISODES,
    FILES_PER_CHUNK,
    IMAGES,
    INDICES,
    OURS,
    SPLITS,
    STATE,
    StoreError,
    StoreInfo,
    file_of,
    info_to_json,
    list_widths,
    publish,
    temporary,
)
from core.store_tables import batches, episode_schema, frame_schema, placed, write_table
from core.store_writer import is_part_done, part_folder
from core.table_reader import TableReader

HASHES = "meta/hashes.json"
SKIPPED = "meta/skipped.json"
_JOINED_OF_PART = ("episode_id", "length", "tasks", "extra", "action_hash", "split")


def is_store_done(path: str | Path) -> bool:
    """Whether the store is complete."""
    return (Path(path) / "meta/info.json").is_file()


def finish_store(path: str | Path, info: StoreInfo, parts: int, rule: SplitRule | None = None) -> str:
    """Complete a store of `parts` parts and give the fingerprint of its content, to which a store's adds its split.

    With a `rule`, episodes are split by it; without one, as they say themselves, except that a held-out episode which
    is the same recording as one that is trained on becomes one to train on.

    Raises:
        StoreError: a part is missing, all are empty, or two episodes have one id.
    """
    path = Path(path)
    if is_store_done(path):
        _remove_parts(path)
        return str(json.loads((path / "meta/info.json").read_text())[OURS]["fingerprint"])
    rows = _rows_of_parts(path, info, parts)
    info = _with_views_seen(path, info, rows)
    tasks = sorted({row["tasks"][0] for row in rows})
    for folder in (DATA, EPISODES, INDICES):
        shutil.rmtree(path / folder, ignore_errors=True)
    _place_videos(path, info, parts)
    _place_tables(path, info, parts, tasks)
    _write_tasks(path, tasks)
    _write_splits(path, rows, rule)
    write_json(path / "meta/stats.json", _statistics(path, info))
    write_json(path / SKIPPED, [entry for part in range(parts) for entry in skipped_of(path, part)])
    described = info_to_json(info, len(rows), sum(row["length"] for row in rows), len(tasks))
    fingerprint = _seal(path, described)
    _remove_parts(path)
    return fingerprint


def _remove_parts(path: Path) -> None:
    """Parts are renamed first: half of them would be taken for what an interrupted run left to go on with."""
    if (path / "parts").is_dir():
        shutil.rmtree(temporary(path / "parts"), ignore_errors=True)
        (path / "parts").rename(temporary(path / "parts"))
    shutil.rmtree(temporary(path / "parts"), ignore_errors=True)


def skipped_of(path: str | Path, part: int) -> list[dict[str, str]]:
    """Episodes that a part left out, with the reasons."""
    entries: list[dict[str, str]] = json.loads((part_folder(path, part) / "skipped.json").read_text())
    return entries


def content_fingerprint(described: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """What identifies a store by its `info.json` and the hashes of its files."""
    own = {name: value for name, value in described[OURS].items() if name != "fingerprint"}
    return fingerprint_of({**described, OURS: own, "hashes": dict(hashes)})


def _seal(path: Path, described: dict[str, Any]) -> str:
    """Write the hashes of all tables and indices and, last of all, `info.json`."""
    kinds = (DATA, EPISODES, INDICES)
    files = [file for kind in kinds for file in sorted((path / kind).rglob("file-*.*"))]
    files.append(path / "meta/tasks.parquet")
    hashes = {str(file.relative_to(path)): fingerprint_of_file(file) for file in files}
    write_json(path / HASHES, hashes)
    fingerprint = content_fingerprint(described, hashes)
    described[OURS]["fingerprint"] = fingerprint
    write_json(path / "meta/info.json", described)
    return fingerprint


def _rows_of_parts(path: Path, info: StoreInfo, parts: int) -> list[dict[str, Any]]:
    """What the joining needs to know of each episode."""
    rows: list[dict[str, Any]] = []
    columns = [*_JOINED_OF_PART, *(f"signature/{view}" for view in info.views)]
    for part in range(parts):
        if not is_part_done(path, part):
            raise StoreError(f"part {part} of {path} is not complete; run the stage that writes it again")
        rows += pq.read_table(part_folder(path, part) / "episodes.parquet", columns=columns).to_pylist()
    if not rows:
        raise StoreError(f"{path} would have no episodes; {_why_empty(path, parts)}")
    names = pd.Series([row["episode_id"] for row in rows])
    if names.duplicated().any():
        raise StoreError(f"{path} holds {names[names.duplicated()].iloc[0]} twice; episode ids must be unique")
    return rows


def _with_views_seen(path: Path, info: StoreInfo, rows: list[dict[str, Any]]) -> StoreInfo:
    """Without the cameras that no episode has."""
    seen = {view: size for view, size in info.views.items() if any(row[f"signature/{view}"] for row in rows)}
    if absent := sorted(info.views.keys() - seen.keys()):
        say(f"{path}: no episode has the views {absent}; the store is without them")
    return replace(info, views=seen)


def _why_empty(path: Path, parts: int) -> str:
    skipped = [entry for part in range(parts) for entry in skipped_of(path, part)]
    return f"all were left out, the first because: {skipped[0]['reason']}" if skipped else "a store needs at least one"


def _place_videos(path: Path, info: StoreInfo, parts: int) -> None:
    """Move videos out of the parts; those that an interrupted joining has moved stay, those of older stores go."""
    ours: set[Path] = set()
    for part in range(parts):
        for view in info.views:
            source, index = (part_folder(path, part) / f"{view}{ending}" for ending in (".mp4", ".npz"))
            if not index.is_file():
                continue
            key = f"{IMAGES}{view}"
            video, copied = file_of(path, f"videos/{key}", part), file_of(path, f"{INDICES}/{key}", part)
            for target in (video, copied):
                target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file():
                source.replace(video)
            shutil.copyfile(index, copied)
            ours.add(video)
    for old in set((path / "videos").rglob("*.mp4")) - ours:
        old.unlink()


def _place_tables(path: Path, info: StoreInfo, parts: int, tasks: list[str]) -> None:
    """Write data files and tables of episodes with the numbers that hold in the whole store."""
    task_of = {instruction: number for number, instruction in enumerate(tasks)}
    episode = frame = 0
    for part in range(parts):
        columns = episode_schema(info).names
        table = pq.read_table(part_folder(path, part) / "episodes.parquet", columns=columns)
        if not len(table):
            continue
        lengths = table["length"].to_numpy()
        ends = frame + np.cumsum(lengths)
        numbers = {
            "episode_index": episode + np.arange(len(table)),
            "dataset_from_index": ends - lengths,
            "dataset_to_index": ends,
            "task_index": np.array([task_of[names[0]] for names in table["tasks"].to_pylist()]),
        }
        numbers |= _files_of_part(path, info, part, len(table))
        for name, values in numbers.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values.astype(np.int64)))
        _place_data(path, info, part, table)
        write_table(table, file_of(path, EPISODES, part))
        episode, frame = episode + len(table), int(ends[-1])


def _files_of_part(path: Path, info: StoreInfo, part: int, episodes: int) -> dict[str, np.ndarray]:
    """Chunk and file of each kind of data. A view that a part lacks points to one that exists, as LeRobot wants."""
    numbers = dict.fromkeys(("data", "meta/episodes"), part)
    for view in info.views if info.codec != "png" else ():
        folder = f"videos/{IMAGES}{view}"
        if not file_of(path, folder, part).is_file():
            others = sorted((path / folder).rglob("*.mp4"))
            chunk, file = (
                (int(name.rsplit("-", 1)[1]) for name in (others[0].parent.name, others[0].stem)) if others else (0, 0)
            )
            numbers[folder] = chunk * FILES_PER_CHUNK + file
        else:
            numbers[folder] = part
    which = {"chunk": lambda number: number // FILES_PER_CHUNK, "file": lambda number: number % FILES_PER_CHUNK}
    return {
        f"{kind}/{name}_index": np.full(episodes, part_of(number))
        for kind, number in numbers.items()
        for name, part_of in which.items()
    }


def _place_data(path: Path, info: StoreInfo, part: int, table: pa.Table) -> None:
    source, target = part_folder(path, part) / "data.parquet", file_of(path, DATA, part)
    target.parent.mkdir(parents=True, exist_ok=True)
    reader, start = TableReader(), 0
    schema = frame_schema(info)
    group = pq.read_metadata(source).row_group(0).num_rows
    with pq.ParquetWriter(temporary(target), schema) as writer:
        for row in table.select(["episode_index", "dataset_from_index", "task_index", "length"]).to_pylist():
            frames = reader.rows(source, start, start + row["length"], schema.names)
            numbered = placed(frames, row["episode_index"], row["dataset_from_index"], row["task_index"])
            writer.write_table(numbered, row_group_size=max(1, min(group, row["length"])))
            start += row["length"]
    publish(target)


def _write_tasks(path: Path, tasks: list[str]) -> None:
    index = pd.Index(tasks, name="task")
    table = pa.Table.from_pandas(pd.DataFrame({"task_index": range(len(tasks))}, index=index))
    write_table(table, path / "meta/tasks.parquet")


def traits_of(row: Mapping[str, Any]) -> Traits:
    """What tells recordings apart, of a row of the table of episodes."""
    signatures = {n.removeprefix("signature/"): v for n, v in row.items() if n.startswith("signature/") and v}
    scene = json.loads(row["extra"]).get("scene", "")
    return Traits(row["length"], signatures, row["action_hash"] or "", str(scene))


def _write_splits(path: Path, rows: list[dict[str, Any]], rule: SplitRule | None) -> None:
    ids, traits = [row["episode_id"] for row in rows], [traits_of(row) for row in rows]
    if rule is not None:
        splits, facts = split_by_rule(ids, traits, rule), rule.model_dump(mode="json")
    else:
        splits = [row["split"] for row in rows]
        torn = straddling(traits, splits)
        splits = ["train" if number in set(torn) else split for number, split in enumerate(splits)]
        facts = {"as_written": True, "moved_to_train": [ids[number] for number in torn]}
    write_json(path / SPLITS, manifest_of(ids, splits, facts))


class _Column:
    """A float column of all data files, read anew each time it is gone through."""

    def __init__(self, path: Path, name: str) -> None:
        self._files, self._name = sorted((path / DATA).rglob("*.parquet")), name

    def __iter__(self) -> Iterator[np.ndarray]:
        return (rows for file in self._files for rows in batches(file, self._name))

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, _: object) -> bool:
        raise NotImplementedError


def _statistics(path: Path, info: StoreInfo) -> dict[str, Any]:
    """Of every frame that has the numbers, as LeRobot defines it: hidden actions and held-out episodes included."""
    columns = {name: _Column(path, name) for name in (ACTION, STATE) if name in list_widths(info)}
    statistics: dict[str, Any] = {
        name: describe(column) for name, column in columns.items() if any(True for _ in column)
    }
    for view in info.views:
        statistics[IMAGES + view] = _joined_statistics(path, IMAGES + view)
    return statistics


def _joined_statistics(path: Path, feature: str) -> dict[str, Any]:
    """Of pictures: from those of the episodes; quantiles are means of theirs, as in LeRobot."""
    names = [f"stats/{feature}/{fact}" for fact in ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")]
    files = sorted((path / EPISODES).rglob("*.parquet"))
    tables = [pq.read_table(file, columns=[*names, f"stats/{feature}/count"]) for file in files]
    table = pa.concat_tables(tables).to_pandas().dropna()
    facts = {name.rsplit("/", 1)[1]: np.array([_colours(row) for row in table[name]]) for name in names}
    counts = np.array([row[0] for row in table[f"stats/{feature}/count"]])
    mean = np.average(facts["mean"], axis=0, weights=counts)
    square = np.average(facts["std"] ** 2 + facts["mean"] ** 2, axis=0, weights=counts)
    joined = {"min": facts["min"].min(0), "max": facts["max"].max(0), "mean": mean}
    joined["std"] = np.sqrt(np.maximum(square - mean**2, 0))
    joined |= {name: np.average(facts[name], axis=0, weights=counts) for name in facts if name.startswith("q")}
    return {name: [[[float(v)]] for v in value] for name, value in joined.items()} | {"count": [int(counts.sum())]}


def _colours(row: Any) -> list[float]:
    return [float(colour[0][0]) for colour in row]
