"""Times of several things that are compared: taken in turn, so that whatever else the machine does hits all alike."""

import time
from collections.abc import Callable, Mapping
from copy import copy
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

Step = TypeVar("Step")


class Timing(NamedTuple):
    """Seconds of a call: middle, lowest and highest."""

    median_s: float
    lowest_s: float
    highest_s: float

    def __str__(self) -> str:
        return f"{self.median_s:9.4f} s  ({self.lowest_s:.4f} to {self.highest_s:.4f})"


def in_turn(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, Timing]:
    """Each call once to warm up, then all of them `rounds` times in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    turns = [(turn, name) for turn in range(rounds + 1) for name in calls]
    for turn, name in (progress := tqdm(turns, unit="call", leave=False)):
        progress.set_description(name)
        synchronise(device)
        start = time.perf_counter()
        calls[name]()
        synchronise(device)
        if turn:
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(median(values), min(values), max(values)) for name, values in seconds.items()}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def changed(step: Step, **attributes: Any) -> Step:
    """The same step under other conditions: model and optimiser are shared."""
    other = copy(step)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other
