"""All measurements in one run: their tables line by line, their numbers as JSON."""

import os
import platform
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from core.device import bf16_is_fast, choose_attention_kernel, default_device
from core.run import versions, write_json
from lam.benchmark.measurements import MEASUREMENTS
from lam.benchmark.sizes import FULL, QUICK


def benchmark(is_quick: bool, only: Collection[int], out: str | None) -> Iterator[str]:
    """Lines to print while it runs; `only` these measurements (none: all), `out` takes the numbers.

    Raises:
        ValueError: there is no such measurement.
    """
    unknown = set(only) - set(MEASUREMENTS)
    if unknown:
        raise ValueError(f"there are no measurements {sorted(unknown)}; there are {sorted(MEASUREMENTS)}")
    device, sizes = default_device(), QUICK if is_quick else FULL
    choose_attention_kernel(device)
    machine = _machine(device)
    numbers: dict[str, Any] = {"machine": machine, "is_quick": is_quick}
    yield ", ".join(f"{name} {value}" for name, value in machine.items())
    for number in sorted(only or MEASUREMENTS):
        measure = MEASUREMENTS[number]
        yield f"\n{number}. {(measure.__doc__ or '').strip()}"
        start = time.monotonic()
        found: dict[str, Any] = {}
        yield from measure(sizes, device, found)
        yield f"  ({time.monotonic() - start:.0f} s)"
        numbers[measure.__name__] = found
        if out is not None:
            write_json(Path(out), numbers)


def _machine(device: torch.device) -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else next(iter(names), platform.machine())
    default = "bf16" if bf16_is_fast(device) else "float32"
    load = os.getloadavg()[0]
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "default precision": default,
        "torch": versions()["torch"],
        "load before": round(load, 2),
    }


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
