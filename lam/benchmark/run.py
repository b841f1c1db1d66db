"""All measurements in one run: their tables line by line, their numbers as JSON."""

from collections.abc import Collection, Iterator
from functools import partial, wraps

from core.benchmark.meters import machine_of
from core.benchmark.running import run_measurements
from core.device import choose_attention_kernel, default_device
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
    yield from run_measurements(measurements, machine_of(device) | {"is_quick": is_quick}, only, out)
