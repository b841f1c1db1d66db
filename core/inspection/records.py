"""What the tables of a store say of its episodes: which are one recording, and when their frames were taken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.duplicates import Traits
from core.inspection.pictures import Looks
from core.splitting import written_traits
from core.store import Store, StoreError
from core.store_contents import episode_ids
from core.store_layout import DATA, EPISODES

LARGEST_STEP = 1.5
"""Time from one frame to the next, as a multiple of what the rate says, from which on frames are missing."""
BATCH_ROWS = 65_536
"""Frames whose times are read together."""


class Clock(NamedTuple):
    """The times of one episode."""

    steps: int
    """From a frame to the next."""
    seconds: float
    """From its first frame to its last."""
    gaps: int
    """Steps to the next frame that go back, stand still, or are too long."""
    gaps_s: float
    """The time that these take."""

    def is_at(self, control_hz: float, tolerance: float) -> bool:
        """Whether the frames come at this rate, but for gaps; those are most steps where the rate is a lower one."""
        rates = [(self.steps, self.seconds)]
        if self.gaps <= self.steps / 2:
            rates.append((self.steps - self.gaps, self.seconds - self.gaps_s))
        return any(seconds <= 0 or not abs(steps / (seconds * control_hz) - 1) > tolerance for steps, seconds in rates)


@dataclass
class Clocks:
    """The times of all episodes, by position."""

    found: dict[int, Clock] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    """Files of which the times cannot be read, and why."""


def traits_of_store(store: Store, looks: Looks, hashes: Mapping[int, str]) -> list[Traits]:
    """What tells recordings apart: as written with the store, else as found in the episodes that were looked at."""
    written = written_traits(store)
    if written is not None:
        return written
    signatures: dict[int, dict[str, bytes]] = {}
    for look in looks.found:
        signatures.setdefault(look.episode, {})[look.view] = look.signature
    lengths = [record.length for record in store.episodes]
    return [Traits(length, signatures.get(n, {}), hashes.get(n, ""), "") for n, length in enumerate(lengths)]


def clocks_of_store(store: Store) -> Clocks:
    """The times of all episodes, read a few frames at a time; none where the store keeps none."""
    positions = {record.episode_id: place for place, record in enumerate(store.episodes)}
    place_of: dict[int, int] = {}
    for file in _files(store, EPISODES):
        names = _read(lambda file=file: pq.read_schema(file).names, file)
        wanted = ["episode_index", *(["episode_id"] if "episode_id" in names else [])]
        table = _read(lambda file=file, wanted=wanted: _table(file, wanted), file)
        ids = episode_ids(table)
        place_of |= {
            n: positions[i] for n, i in zip(table["episode_index"].to_pylist(), ids, strict=True) if i in positions
        }
    clocks = Clocks()
    for file in _files(store, DATA):
        try:
            for number, times in _read_times(file):
                if number in place_of:
                    _add(clocks.found, place_of[number], times, store.info.control_hz)
        except (OSError, ValueError) as error:
            clocks.unreadable.append(f"{file}: {error}")
    return clocks


def _add(found: dict[int, Clock], place: int, times: np.ndarray, control_hz: float) -> None:
    """Take in some further frames of an episode, of which the first was the last before."""
    before = found.get(place, Clock(0, 0.0, 0, 0.0))
    seconds = np.diff(times)
    steps = seconds * control_hz
    odd = (steps <= 0) | (steps > LARGEST_STEP) | ~np.isfinite(steps)
    found[place] = Clock(
        before.steps + len(steps),
        before.seconds + float(times[-1] - times[0]),
        before.gaps + int(odd.sum()),
        before.gaps_s + float(seconds[odd].sum()),
    )


def _read_times(file: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Episodes and times of their frames; what a piece of the file cuts begins with the last frame before the cut."""
    parquet = pq.ParquetFile(file)
    if {"episode_index", "timestamp"} - set(parquet.schema_arrow.names):
        return
    last: tuple[int, float] | None = None
    for batch in parquet.iter_batches(BATCH_ROWS, columns=["episode_index", "timestamp"]):
        if not len(batch):
            continue
        episodes = _flat(batch["episode_index"]).astype(np.int64)
        times = _flat(batch["timestamp"]).astype(np.float64)
        if last is not None and last[0] == episodes[0]:
            episodes, times = np.append(last[0], episodes), np.append(last[1], times)
        cuts = np.flatnonzero(np.diff(episodes)) + 1
        for piece, of_piece in zip(np.split(times, cuts), np.split(episodes, cuts), strict=True):
            yield int(of_piece[0]), piece
        last = int(episodes[-1]), float(times[-1])


def _flat(column: pa.Array) -> np.ndarray:
    """One number a frame, however deep in lists."""
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def _files(store: Store, kind: str) -> list[Path]:
    return sorted((store.path / kind).glob("*/*.parquet"))


def _table(file: Path, columns: list[str]) -> pa.Table:
    return pq.read_table(file, columns=columns, use_threads=False, partitioning=None)


def _read(read: Any, file: Path) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{file} is damaged: {error}") from None
