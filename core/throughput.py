"""How fast a training goes, and what holds it up: samples, tokens and arithmetic a second, waiting for data, memory."""

import resource
import time
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from core.device import peak_flops
from core.loading import Batch

TIMINGS = (
    "steps_per_s",
    "samples_per_s",
    "tokens_per_s",
    "tflops_per_s",
    "mfu",
    "data_wait_share",
    "memory_gb",
)
"""What `Throughput` says; it depends on the machine, not on the training."""


class Work(NamedTuple):
    """What there is to do for a batch, forward and backward."""

    tokens: int
    flops: float
    """Floating-point operations of the matrix products."""


@runtime_checkable
class Measured(Protocol):
    """A model that can say how much work a batch is."""

    def work(self, batch: Batch) -> Work:
        """Of a batch on the CPU."""


class Throughput:
    """Counts from one line of metrics to the next."""

    def __init__(self, samples_a_step: int, processes: int, device: torch.device) -> None:
        self.samples_a_step, self.processes, self.device = samples_a_step, processes, device
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.since, self.waited_s, self.tokens, self.flops = time.monotonic(), 0.0, 0, 0.0

    def add(self, waited_s: float, work: Work | None) -> None:
        """A micro-step: how long this process waited for its batch, and what that was."""
        self.waited_s += waited_s
        if work is not None:
            self.tokens, self.flops = self.tokens + work.tokens, self.flops + work.flops

    def line(self, steps: int) -> dict[str, float]:
        """Of all processes together, as this one saw it, over so many optimiser steps; then counting begins anew."""
        seconds = time.monotonic() - self.since
        said = {"steps_per_s": steps / seconds, "samples_per_s": steps * self.samples_a_step / seconds}
        if self.tokens:
            said["tokens_per_s"] = self.tokens * self.processes / seconds
            said["tflops_per_s"] = self.flops * self.processes / seconds / 1e12
            if peak := peak_flops(self.device):
                said["mfu"] = self.flops / seconds / peak
        said["data_wait_share"] = self.waited_s / seconds
        said["memory_gb"] = self._memory() / 2**30
        self.start()
        return {name: round(value, 4) for name, value in said.items()}

    def _memory(self) -> float:
        """The most that was in use: on the GPU, where there is one, else of this process."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
