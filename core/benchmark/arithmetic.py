"""Floating point operations of a call, and how many the machine does a second at best."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from core.benchmark.timing import Clock, seconds_of

REPEATS = 10


def operations(call: Callable[[], Any]) -> int:
    """Operations (two a multiplication and addition) of the matrix products of a call, gradients included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_rate(
    clock: Clock, device: torch.device, dtype: torch.dtype, rows: int, width: int, feed_forward: int
) -> float:
    """The most operations a second of products of `rows` tokens with the weights of a block, the best of ten."""
    rates = []
    for inputs, outputs in ((width, width), (width, feed_forward), (feed_forward, width)):
        tokens = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        functional.linear(tokens, weight)
        seconds = [seconds_of(lambda t=tokens, w=weight: functional.linear(t, w), clock) for _ in range(REPEATS)]  # type: ignore[misc]
        rates += [2 * rows * inputs * outputs / one for one in seconds]
    return max(rates)
