"""Where tensors live and which precision is fast there."""

import os
from pathlib import Path

import torch


def default_device() -> torch.device:
    """This process's CUDA device where there is one, else the CPU; launchers number the processes of a machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def choose_attention_kernel(device: torch.device) -> None:
    """On a CPU, let torch attend by plain matrix products: at tens of tokens half the time of the fused kernel."""
    if device.type == "cpu":
        torch.backends.cuda.enable_flash_sdp(False)


PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}
"""Dense bfloat16 products of GPUs by a part of their name, from NVIDIA's data sheets; the first that fits counts."""


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that a GPU is sold for in bfloat16; None where that is not known, and on CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * value for part, value in PEAK_TFLOPS.items() if part in name), None)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 matrix products beat float32 ones on `device` (on CPUs: AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
