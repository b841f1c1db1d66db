"""Floating point operations of a call, and how many the machine does a second at best."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lam.benchmark.timing import synchronise


def operations(call: Callable[[], Any]) -> int:
    """Operations (two a multiplication and addition) of the matrix products of a call, gradients included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_rate(device: torch.device, dtype: torch.dtype, rows: int, width: int, repeats: int = 10) -> float:
    """The most operations a second of products of `rows` tokens with the weights of a block, the best of `repeats`."""
    rates = []
    for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
        tokens = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        torch.nn.functional.linear(tokens, weight)
        for _ in range(repeats):
            synchronise(device)
            start = time.perf_counter()
            torch.nn.functional.linear(tokens, weight)
            synchronise(device)
            rates.append(2 * rows * inputs * outputs / (time.perf_counter() - start))
    return max(rates)
