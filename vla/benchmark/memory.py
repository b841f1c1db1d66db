"""Memory and time of a pretraining step, each way in a process of its own: a peak cannot be taken back."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from core.benchmark.fresh_process import in_fresh_process
from core.benchmark.meters import peak_memory, process_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import Timing, ratio, ratio_row, rows, seconds_of
from core.device import bf16_is_fast, choose_attention_kernel
from vla.benchmark.instructions import instructions
from vla.benchmark.sizes import QUICK, Sizes
from vla.benchmark.steps import OurStep

GIGA = 1e9
STEPS = 3
"""Of which the first, which makes the optimiser's memory, is not timed; the peak is in the second."""


class Way(NamedTuple):
    """How a model is trained."""

    has_adapters: bool
    is_checkpointed: bool


FULL = "all weights"
WAYS = {
    FULL: Way(has_adapters=False, is_checkpointed=False),
    "all weights, activations computed again": Way(has_adapters=False, is_checkpointed=True),
    "adapters": Way(has_adapters=True, is_checkpointed=False),
    "adapters, activations computed again": Way(has_adapters=True, is_checkpointed=True),
}


class Cost(NamedTuple):
    """Of a way."""

    memory: int
    """Bytes at the peak of a step, with weights, gradients and the optimiser's state."""
    seconds: tuple[float, ...]
    """Of steps."""
    losses: tuple[float, ...]
    trained: int
    """Weights that are trained."""


def memory_of_ways(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """Memory and seconds of a step that trains all weights or adapters, with activations kept or computed again."""
    found = {name: cost_of(sizes, device, way) for name, way in WAYS.items()}
    timings = {name: Timing.of(cost.seconds) for name, cost in found.items()}
    numbers["bytes"] = {name: cost.memory for name, cost in found.items()}
    numbers["trained weights"] = {name: cost.trained for name, cost in found.items()}
    yield f"  {sizes.batch} samples; each way in a process of its own; adapters of rank {sizes.rank}"
    for line, cost in zip(rows(timings, numbers), found.values(), strict=True):
        yield f"{line}  {cost.memory / GIGA:6.2f} GB, {cost.trained / 1e6:6.1f} M trained"
    for name in list(WAYS)[1:]:
        yield ratio_row(f"seconds: {name} / all kept", ratio(timings[name], timings[FULL]), numbers)
        numbers[f"bytes: {name} / all kept"] = share = found[name].memory / found[FULL].memory
        yield f"  {f'memory: {name} / all kept':56} {share:9.3f}"


def cost_of(sizes: Sizes, device: torch.device, way: Way) -> Cost:
    """Of a few steps in a new process.

    Raises:
        RuntimeError: it ended without an answer.
    """
    return in_fresh_process(str(way), _measure, sizes, device, way)


def _measure(sizes: Sizes, device: torch.device, way: Way) -> Cost:
    torch.set_num_threads(1)
    choose_attention_kernel(device)
    _steps(QUICK, device, way, 1)  # whatever is loaded when it is first needed is not the step's
    before = peak_memory(device)
    seconds, losses, trained = _steps(sizes, device, way, STEPS)
    return Cost(peak_memory(device) - before, tuple(seconds[1:]), tuple(losses), trained)


def _steps(sizes: Sizes, device: torch.device, way: Way, number: int) -> tuple[list[float], list[float], int]:
    """Seconds and losses of steps, and how many weights they train."""
    model = sizes.new_model(way.has_adapters).to(device)
    if way.is_checkpointed:
        model.backbone.use_checkpointing()
    batch = sizes.batch_of(model.backbone, instructions(sizes.batch))
    step = OurStep(model, {name: value.to(device) for name, value in batch.items()}, bf16_is_fast(device))
    losses: list[float] = []
    seconds = [seconds_of(lambda: losses.append(step()), process_clock(device)) for _ in range(number)]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return seconds, losses, trained
