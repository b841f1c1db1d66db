"""Where the time of a training step goes, by kind of operation."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from core.benchmark.meters import synchronise
from lam.benchmark.our_step import OurStep

KINDS = {
    "attention": r"aten::(bmm|baddbmm|_softmax.*|_scaled_dot_product.*|_flash.*|_efficient.*|sigmoid.*)$",
    "matrix products": r"aten::(mm|addmm|linear|_addmm_activation)$",
    "normalisation": r"aten::native_layer_norm",
    "gelu": r"aten::gelu",
    "casts and copies": r"aten::(copy_|_to_copy|cat|clone|stack|index|index_put_|_index_put_impl_|fill_|zero_)$",
    "sums, products": r"aten::(add|add_|mul|mul_|sub|div|sum|pow|neg|mean|rsub)$",
}
REST, UPDATE = "rest", "optimiser and clipping"


def seconds_by_kind(step: OurStep, device: torch.device) -> dict[str, float]:
    """Seconds of one step spent in each kind of operation, largest first."""
    step()
    found = dict.fromkeys([*KINDS, REST, UPDATE], 0.0)
    for operation, seconds in _seconds(step.gradients, device):
        found[kind_of(operation)] += seconds
    found[UPDATE] = sum(seconds for _, seconds in _seconds(step.update, device))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _seconds(call: Callable[[], Any], device: torch.device) -> Iterator[tuple[str, float]]:
    """Operations of a call and the seconds spent in each itself."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as record:
        call()
        synchronise(device)
    for event in record.key_averages():
        if not on_gpu:
            yield event.key, event.self_cpu_time_total / 1e6
        elif event.key.startswith("aten::"):
            yield event.key, event.self_device_time_total / 1e6


def kind_of(operation: str) -> str:
    """The kind of an operation of the profiler."""
    return next((kind for kind, pattern in KINDS.items() if re.match(pattern, operation)), REST)
