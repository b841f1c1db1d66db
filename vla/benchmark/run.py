"""All measurements in one run: their tables line by line, their numbers as JSON."""

from collections.abc import Collection, Iterator
from functools import partial, wraps
from typing import Any

import torch

from core.benchmark.meters import machine_of
from core.benchmark.running import run_measurements
from core.device import choose_attention_kernel, default_device
from vla.benchmark.latency import latency
from vla.benchmark.loading import LabellerOf, labels_in_the_loader
from vla.benchmark.memory import memory_of_ways
from vla.benchmark.overhead import step_against_bare
from vla.benchmark.padding import padding
from vla.benchmark.peak import share_of_peak
from vla.benchmark.sizes import FULL, QUICK


def benchmark(is_quick: bool, only: Collection[int], out: str | None, *, labeller: LabellerOf) -> Iterator[str]:
    """Lines to print while it runs; `only` these measurements (none: all), `out` takes the numbers.

    `labeller` makes the latent action model that labels could be had from. On a CPU one thread computes.

    Raises:
        ValueError: there is no such measurement.
    """
    device, sizes = default_device(), QUICK if is_quick else FULL
    choose_attention_kernel(device)
    if device.type == "cpu":
        torch.set_num_threads(1)

    @wraps(labels_in_the_loader)
    def loading(numbers: dict[str, Any]) -> Iterator[str]:
        return labels_in_the_loader(sizes, device, labeller(is_quick, False), labeller(is_quick, True), numbers)

    others = {1: step_against_bare, 3: padding, 4: memory_of_ways, 5: latency, 6: share_of_peak}
    measurements = {number: wraps(measure)(partial(measure, sizes, device)) for number, measure in others.items()}
    yield from run_measurements(measurements | {2: loading}, machine_of(device) | {"is_quick": is_quick}, only, out)
