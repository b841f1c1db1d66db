"""Meters of a device: clocks that first wait until it has done what it was asked, the most memory it took, its name."""

import resource
import time

import torch

from core.benchmark.running import Numbers, processor
from core.benchmark.timing import Clock
from core.device import bf16_is_fast
from core.run import versions


def wall_clock(device: torch.device) -> Clock:
    """The time that passes, for work that may use several threads."""

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    return now


def process_clock(device: torch.device) -> Clock:
    """On a CPU processor seconds of this process, so that other programs count as little as can be; else the time."""
    return time.process_time if device.type == "cpu" else wall_clock(device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes ever taken by this process, on the GPU where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine_of(device: torch.device) -> Numbers:
    """What numbers measured on the device depend on."""
    known = versions()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "default precision": "bf16" if bf16_is_fast(device) else "float32",
        "torch": known["torch"],
        "transformers": known["transformers"],
    }
