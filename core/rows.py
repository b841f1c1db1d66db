"""Files that hold all frames of a camera, or what was made of them, one episode after another."""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from core.store import Store

FILE = "rows.npy"


class RowsError(ValueError):
    """A frame that no episode has, or a file that does not hold what it should."""


class Rows:
    """First row and length of each episode in each view; the length is 0 where the view was not recorded."""

    def __init__(self, views: Sequence[str], table: Int[np.ndarray, "views episodes 2"]) -> None:
        self.table = table
        self._of_view = dict(zip(views, table, strict=True))

    @classmethod
    def of(cls, store: Store, views: Sequence[str]) -> "Rows":
        """All episodes of a store."""
        lengths = np.array([[record.length * (view in record.views) for record in store.episodes] for view in views])
        firsts = np.cumsum(lengths, axis=1) - lengths
        return cls(views, np.stack([firsts * (lengths > 0), lengths], axis=-1).astype(np.int64))

    @classmethod
    def load(cls, directory: Path, views: Sequence[str]) -> "Rows":
        """What `save` wrote."""
        return cls(views, np.load(directory / FILE))

    def save(self, directory: Path) -> None:
        """Write atomically."""
        np.save(directory / f".{FILE}", self.table)
        (directory / f".{FILE}").replace(directory / FILE)

    def of_episode(self, view: str, episode: int) -> tuple[int, int]:
        """First row and number of rows of an episode in the view's file; (0, 0) where the view was not recorded."""
        first, length = self._rows(view)[episode]
        return int(first), int(length)

    def counts(self) -> dict[str, int]:
        """Rows of each view."""
        return {view: int(rows[:, 1].sum()) for view, rows in self._of_view.items()}

    def numbers(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        """Rows of the frames `(episodes[i], frames[i])`.

        Raises:
            RowsError: an episode lacks the view or the frame.
        """
        first, length = self._rows(view)[episodes].T
        outside = (frames < 0) | (frames >= length)
        if outside.any():
            at = int(np.argmax(outside))
            raise RowsError(
                f"episode {episodes[at]} has {length[at]} frames of view {view}, frame {frames[at]} was asked for"
            )
        return first + frames

    def _rows(self, view: str) -> Int[np.ndarray, "episodes 2"]:
        if view not in self._of_view:
            raise RowsError(f"there are the views {list(self._of_view)}, not {view!r}")
        return self._of_view[view]


class RowFile:
    """Rows of a .npy file; read, not mapped, so that no page of it counts as this process's memory.

    Safe after a fork and in copies sent to other processes.
    """

    def __init__(self, path: Path) -> None:
        """Read what the file holds, not the rows.

        Raises:
            RowsError: it is missing or cut off.
        """
        try:
            mapped = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise RowsError(f"{path} is missing or cut off ({error})") from None
        self.path, self.shape, self.dtype = path, mapped.shape[1:], mapped.dtype
        self._start = mapped.offset
        self._file: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def rows(self, numbers: Int[np.ndarray, " n"]) -> np.ndarray:
        """The rows of these numbers, in this order.

        Raises:
            RowsError: the file was cut off since.
        """
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        taken = np.empty((len(numbers), *self.shape), self.dtype)
        for number, row in zip(numbers.tolist(), taken, strict=True):
            if os.preadv(self._file, [row.data], self._start + number * row.nbytes) != row.nbytes:
                raise RowsError(f"{self.path} is cut off at row {number}; move its directory away and make it again")
        return taken
