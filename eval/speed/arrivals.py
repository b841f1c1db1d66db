"""When results came, seen from outside of what makes them."""

import threading
import time
from pathlib import Path
from types import TracebackType

LOOK_EVERY_S = 0.01


class Arrivals:
    """While the `with` block lasts, when each line of a file was there; `times` are those of `time.perf_counter`."""

    def __init__(self, file: Path) -> None:
        self.times: list[float] = []
        self._file, self._ending = file, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Arrivals":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ending.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        lines = self._file.read_bytes().count(b"\n") if self._file.exists() else 0
        self.times += [time.perf_counter()] * (lines - len(self.times))
