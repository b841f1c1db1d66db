"""SIGINT and SIGTERM ask a training to stop after the current step, on one process or many."""

import signal
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from core.run import say


class StopSignal:
    """A context in which SIGINT and SIGTERM only ask for a stop; alone, a second one stops at once.

    With several processes a second one changes nothing: launchers send one to each process after the terminal did.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.is_set = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        alone = self.accelerator.num_processes == 1
        if self.is_set and alone:
            raise KeyboardInterrupt
        if self.accelerator.is_main_process and not self.is_set:
            again = " (again to stop at once)" if alone else ""
            say(f"stopping after this step; the training state will be saved{again}")
        self.is_set = True

    def requested(self) -> bool:
        """Whether any process was asked to stop; every process has to ask."""
        if self.accelerator.num_processes == 1:
            return self.is_set
        flag = torch.tensor(float(self.is_set), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())
