"""What a store says it holds, read and checked: `info.json`, the table of episodes, splits, hashes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.run import fingerprint_of, fingerprint_of_file
from core.splits import SplitError, read_manifest, splits_of_ranges
from core.store_finish import HASHES, content_fingerprint
from core.store_layout import (
    DATA,
    EPISODES,
    FILES_PER_CHUNK,
    FORMAT,
    OURS,
    SPLITS,
    StoreError,
    StoreInfo,
    file_of,
    info_from_json,
    view_features,
)
from core.table_reader import require_unchanged

_NEEDED = {"episode_index": pa.int64(), "length": pa.int64(), "dataset_from_index": pa.int64()}
_OF_OURS = ("episode_id", "task", "extra", "views", "is_labelled")
_OPTIONAL = ("tasks", "task_index", "action_hash")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A store's description of itself."""

    info: StoreInfo
    features: dict[str, str]
    """The feature of each view."""
    pictures: frozenset[str]
    """Views that are kept as single pictures, not as video."""
    fingerprint: str
    hashes: dict[str, str]
    """Fingerprints of files by their paths; empty for a store of another program."""
    table: pa.Table
    """One row an episode."""
    first_rows: dict[int, int]
    """Number, in the whole store, of the first frame of each data file."""
    splits: list[str]
    is_ours: bool
    notes: list[str]
    """What the store promises and does not hold."""


def read_contents(path: Path) -> Contents:
    """The contents of the store at `path`, of this project or of another program that writes LeRobot v3.0.

    Raises:
        StoreError: there is no store, it is not complete, or what it says of itself does not fit together.
    """
    described = _described(path)
    try:
        info, features = info_from_json(described), view_features(described)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from None
    pictures = frozenset(view for view, name in features.items() if described["features"][name]["dtype"] == "image")
    is_ours = "fingerprint" in described.get(OURS, {})
    hashes = _hashes(path, described) if is_ours else {}
    table = _episodes(path, features, pictures, is_ours)
    notes: list[str] = []
    first_rows = _first_rows(table)
    if not is_ours:
        table, notes = _present(path, table, features, pictures)
    _require_consistent(path, table, info, {features[view] for view in features if view not in pictures})
    for name, found in (("total_episodes", len(table)), ("total_frames", pc.sum(table["length"]).as_py())):
        if described.get(name) != found:
            notes.append(f"meta/info.json promises {name} = {described.get(name)}, {found} are there")
    if is_ours and notes:
        raise StoreError(f"{path} is damaged: {'; '.join(notes)}")
    splits = _splits(path, table, described, is_ours)
    return Contents(
        info=info,
        features=features,
        pictures=pictures,
        fingerprint=fingerprint_of([_content(path, described, is_ours), *splits]),
        hashes=hashes,
        table=table,
        first_rows=first_rows,
        splits=splits,
        is_ours=is_ours,
        notes=notes,
    )


def _described(path: Path) -> Any:
    file = path / "meta/info.json"
    if not file.is_file():
        has_begun = (path / "parts").is_dir() or (path / "meta").is_dir()
        state = "was started but is not complete" if has_begun else "does not exist"
        raise StoreError(f"the store {path} {state}: no {file}; run the stage that writes its episodes (again)")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        version = described.get("codebase_version")
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{file} is damaged: {error}") from None
    if version != FORMAT:
        raise StoreError(
            f"{path} has format {version}, a store {FORMAT}; convert it with scripts/convert_episodes.py {path} OUT"
        )
    return described


def _hashes(path: Path, described: dict[str, Any]) -> dict[str, str]:
    try:
        hashes: dict[str, str] = json.loads((path / HASHES).read_text())
        found = content_fingerprint(described, hashes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path / HASHES} is missing or damaged: {error}") from None
    if found != described[OURS]["fingerprint"]:
        raise StoreError(f"{path} is damaged: meta/info.json and {HASHES} are not those that were written together")
    return {str(path / name): fingerprint for name, fingerprint in hashes.items()}


def _content(path: Path, described: dict[str, Any], is_ours: bool) -> str:
    """A store of another program is known by its description and by the names and sizes of its files."""
    if is_ours:
        return str(described[OURS]["fingerprint"])
    tables = {str(file): fingerprint_of_file(path / file) for file in _tables(path)}
    files = sorted(file for kind in (DATA, "videos") for file in (path / kind).rglob("*.*"))
    return fingerprint_of([described, tables, [(str(f.relative_to(path)), f.stat().st_size) for f in files]])


def _tables(path: Path) -> list[Path]:
    return [file.relative_to(path) for file in sorted((path / EPISODES).glob("*/*.parquet"))]


def _episodes(path: Path, features: Mapping[str, str], pictures: frozenset[str], is_ours: bool) -> pa.Table:
    videos = [features[view] for view in features if view not in pictures]
    facts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    wanted = [*_NEEDED, "data/chunk_index", "data/file_index", *(_OF_OURS if is_ours else ())]
    wanted += [f"videos/{name}/{fact}" for name in videos for fact in facts]
    hashes = json.loads((path / HASHES).read_text()) if is_ours else {}
    tables = []
    for name in _tables(path):
        require_unchanged(path / name, hashes.get(str(name)))
        try:
            there = pq.read_schema(path / name).names
            if missing := sorted(set(wanted) - set(there)):
                raise StoreError(f"{path / name} lacks the columns {missing}")
            optional = [column for column in _OPTIONAL if column in there]
            columns = [*wanted, *optional]
            tables.append(pq.read_table(path / name, columns=columns, use_threads=False, partitioning=None))
            _require_texts(tables[-1])
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path / name} is damaged: {error}") from None
    if not tables:
        raise StoreError(f"{path} has no table of episodes in {EPISODES}")
    try:
        table = pa.concat_tables(tables, promote_options="default").combine_chunks()
        numbers = [name for name in wanted if name.endswith("_index") or name == "length"]
        for name in numbers:
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.int64()))
    except (ValueError, TypeError) as error:
        raise StoreError(f"the tables of episodes of {path} do not fit together: {error}") from None
    if missing := [name for name in numbers if table[name].null_count and not (is_ours and name.startswith("videos"))]:
        raise StoreError(f"the table of episodes of {path} lacks values of {missing}")
    return table.sort_by("episode_index") if not is_ours else table


def _require_texts(table: pa.Table) -> None:
    """Refuse texts that are no UTF-8, which pyarrow would hand out only to raise when they are looked at.

    Raises:
        ValueError: it names the row.
    """
    try:
        table.validate(full=True)
        return
    except pa.ArrowInvalid as error:
        problem = str(error)
    for name in table.column_names:
        for row, value in enumerate(table[name]):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                number = table["episode_index"][row]
                raise ValueError(
                    f"{name} of row {row}, episode {number}, is not UTF-8: {error.object[:40]!r}"
                ) from None
    raise ValueError(problem)


def _present(
    path: Path, table: pa.Table, features: Mapping[str, str], pictures: frozenset[str]
) -> tuple[pa.Table, list[str]]:
    """The episodes whose files are there, and what to say of the others."""
    kinds = {"data": DATA} | {f"videos/{features[v]}": f"videos/{features[v]}" for v in features if v not in pictures}
    is_there = np.ones(len(table), bool)
    missing: set[str] = set()
    for column, folder in kinds.items():
        numbers = file_numbers(table, column)
        for number in np.unique(numbers):
            if number < 0 or not (file := file_of(path, folder, int(number))).is_file():
                missing.add(str(file if number >= 0 else folder))
                is_there &= numbers != number
    if not is_there.any():
        raise StoreError(f"{path} has none of the files of its {len(table)} episodes; missing: {sorted(missing)[:3]}")
    if is_there.all():
        return table, []
    left_out = int((~is_there).sum())
    return table.filter(pa.array(is_there)), [
        f"{left_out} of {len(table)} episodes are left out: {len(missing)} files are missing, first {min(missing)}"
    ]


def file_numbers(table: pa.Table, kind: str) -> np.ndarray:
    """Number of the file that holds each episode's data of a kind."""
    chunks, files = (table[f"{kind}/{which}_index"].to_numpy() for which in ("chunk", "file"))
    return chunks * FILES_PER_CHUNK + files


def place_of(path: Path, contents: Contents, episode: int) -> tuple[Path, int]:
    """The data file of the episode in this row of the table, and the number of its first frame there."""
    number = int(file_numbers(contents.table.slice(episode, 1), "data")[0])
    first: int = contents.table["dataset_from_index"][episode].as_py()
    return file_of(path, DATA, number), first - contents.first_rows[number]


def _first_rows(table: pa.Table) -> dict[int, int]:
    numbers, starts = file_numbers(table, "data"), table["dataset_from_index"].to_numpy()
    order = np.lexsort((starts, numbers))
    files, places = np.unique(numbers[order], return_index=True)
    return dict(zip(files.tolist(), starts[order][places].tolist(), strict=True))


def _require_consistent(path: Path, table: pa.Table, info: StoreInfo, videos: set[str]) -> None:
    lengths = table["length"].to_numpy()
    if (lengths < 1).any() or (table["dataset_from_index"].to_numpy() < 0).any():
        at = int(np.argmax(lengths < 1))
        raise StoreError(f"{path}: episode {table['episode_index'][at].as_py()} claims {lengths[at]} frames")
    if len(np.unique(table["episode_index"].to_numpy())) < len(table):
        raise StoreError(f"{path}: its table of episodes has one episode twice")
    for name in videos:
        start, end = (table[f"videos/{name}/{which}_timestamp"].to_numpy() for which in ("from", "to"))
        wrong = np.abs((end - start) * info.control_hz - lengths) > 1.01
        if wrong.any() or (start < 0).any():
            at = int(np.argmax(wrong | (start < 0)))
            raise StoreError(
                f"{path}: episode {table['episode_index'][at].as_py()} has {lengths[at]} frames at {info.control_hz} "
                f"Hz, its video {name} lasts from {start[at]} to {end[at]} s"
            )


def _splits(path: Path, table: pa.Table, described: dict[str, Any], is_ours: bool) -> list[str]:
    ids = episode_ids(table)
    if is_ours or (path / SPLITS).is_file():
        try:
            return read_manifest(path / SPLITS, ids)
        except SplitError as error:
            raise StoreError(str(error)) from None
    return splits_of_ranges(described, table["episode_index"].to_pylist())


def episode_ids(table: pa.Table) -> list[str]:
    """Names of the episodes: those that they were given, else their numbers."""
    if "episode_id" in table.column_names:
        return table["episode_id"].to_pylist()
    return [f"episode_{number:06d}" for number in table["episode_index"].to_pylist()]
