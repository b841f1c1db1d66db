"""Numbered measurements of one subject: their tables line by line as they are made, their numbers as JSON."""

import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.run import write_json

Numbers = dict[str, Any]
"""What goes into the JSON; a measurement adds to it."""


def run_measurements(
    measurements: Mapping[int, Callable[[Numbers], Iterator[str]]],
    machine: Numbers,
    only: Collection[int],
    out: str | None,
) -> Iterator[str]:
    """Lines to print while they run; `only` these (none: all), `out` takes the numbers.

    Raises:
        ValueError: there is no such measurement.
    """
    if unknown := set(only) - set(measurements):
        raise ValueError(f"there are no measurements {sorted(unknown)}; there are {sorted(measurements)}")
    machine = machine | {"load before": round(os.getloadavg()[0], 2)}
    numbers: Numbers = {"machine": machine}
    yield ", ".join(f"{name} {value}" for name, value in machine.items())
    for number in sorted(only or measurements):
        measure = measurements[number]
        yield f"\n{number}. {(measure.__doc__ or '').strip()}"
        start = time.monotonic()
        found: Numbers = {}
        yield from measure(found)
        yield f"  ({time.monotonic() - start:.0f} s)"
        numbers[measure.__name__] = found
        if out is not None:
            write_json(Path(out), numbers)


def processor() -> str:
    """Name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
