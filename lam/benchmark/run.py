"""All measurements in one run: their tables line by line, their numbers as JSON."""

from collections.abc import Collection, Iterator
from functools import partial, wraps
from typing import Any

import torch

from core.benchmark.running import processor, run_measurements
from core.device import bf16_is_fast, choose_attention_kernel, default_device
from core.run import versions
from lam.benchmark.measurements import MEASUREMENTS
from lam.benchmark.sizes import FULL, QUICK


def benchmark(is_quick: bool, only: Collection[int], out: str | None) -> Iterator[str]:
    """Lines to print while it runs; `only` these measurements (none: all), `out` takes the numbers.

    Raises:
        ValueError: there is no such measurement.
    """
    device, sizes = default_device(), QUICK if is_quick else FULL
    choose_attention_kernel(device)
    measurements = {number: wraps(measure)(partial(measure, sizes, device)) for number, measure in MEASUREMENTS.items()}
    yield from run_measurements(measurements, _machine(device) | {"is_quick": is_quick}, only, out)


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    default = "bf16" if bf16_is_fast(device) else "float32"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "default precision": default,
        "torch": versions()["torch"],
    }
