"""What the machine must have for any of this project: Python, packages, GPU, torch, disk, memory, weights."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from core.doctor import FAIL, OK, SET_UP, WARN, Finding

CHECKS = {
    "python": "core.checks:python",
    "packages": "core.checks:packages",
    "driver": "core.checks:driver",
    "torch": "core.checks:torch",
    "bfloat16": "core.checks:bfloat16",
    "disk": "core.checks:disk",
    "memory": "core.checks:memory",
    "shared memory": "core.checks:shared_memory",
    "DeepSpeed build tools": "core.checks:build_tools",
    "visual tower": "core.checks:visual_tower",
}
PYTHON = (3, 11)
BASE = {"jaxtyping", "numpy", "pydantic", "pyyaml"}
"""Without these no module of the project can be imported; a robot that asks a policy server needs no others."""
GB = 1e9
LEAST_DISK_GB, GOOD_DISK_GB = 1.0, 10.0
LEAST_MEMORY_GB, GOOD_MEMORY_GB = 2.0, 6.0
GOOD_SHARED_MEMORY_GB = 1.0
INSTALL_TORCH = f"{sys.executable} -m pip install --upgrade --force-reinstall torch torchvision"


def python() -> Finding:
    """Whether Python is new enough, and which it is."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return Finding(FAIL, f"{version}; {wanted} or newer is needed", f"PYTHON=/path/to/python3.12 {SET_UP}")
    return Finding(OK, f"{version} in {sys.prefix}")


def packages() -> Finding:
    """Whether the project's dependencies are there in versions that it can work with."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("mvp-lam") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(FAIL, f"the project is not installed in {sys.prefix}", SET_UP)
    requirements = [Requirement(line) for line in declared]
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    absent, wrong = [], []
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    install = f"{sys.executable} -m pip install -e ."
    if wrong or BASE.intersection(absent):
        return Finding(FAIL, ", ".join([*wrong, *(f"no {name}" for name in absent)]), install)
    if absent:
        return Finding(WARN, f"not installed, and needed by parts of the project: {', '.join(absent)}", install)
    return Finding(OK, f"all {len(needed)} that the project needs are there; those of its extras are not checked")


def driver() -> Finding:
    """Whether an NVIDIA GPU answers, where there is one."""
    if not shutil.which("nvidia-smi"):
        if not Path("/proc/driver/nvidia/version").exists():
            return Finding(OK, "no NVIDIA GPU; everything runs on the CPU")
        fix = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all ..."
        return Finding(WARN, "an NVIDIA driver is loaded, but nvidia-smi is not here (in a container?)", fix)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    finished = subprocess.run(query, capture_output=True, text=True, check=False)
    if finished.returncode:
        said = (finished.stdout + finished.stderr).strip() or f"status {finished.returncode}"
        return Finding(
            FAIL, f"nvidia-smi: {said}", "sudo reboot (the kernel module and the driver's files often differ)"
        )
    return Finding(OK, "; ".join(finished.stdout.strip().splitlines()))


def torch() -> Finding:
    """Whether torch works here, on the GPU where there is one."""
    if not importlib.util.find_spec("torch"):
        return Finding(
            WARN,
            "not installed: no training and no policies in this environment, only simulators beside a policy server",
            f"{sys.executable} -m pip install torch torchvision",
        )
    import torch as library

    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        return Finding(FAIL, f"torch {library.__version__} and torchvision do not fit: {error}", INSTALL_TORCH)
    found = f"torch {library.__version__}, torchvision {torchvision.__version__}"
    if library.cuda.is_available():
        return _cuda(found)
    if shutil.which("nvidia-smi"):
        built = f"CUDA {library.version.cuda}" if library.version.cuda else "the CPU alone"
        return Finding(FAIL, f"{found}, built for {built}, does not see the NVIDIA GPU", INSTALL_TORCH)
    return Finding(OK, f"{found}, on the CPU with {library.get_num_threads()} threads")


def bfloat16() -> Finding:
    """Whether products in bfloat16 are right, and whether `auto` settings will choose them."""
    if not importlib.util.find_spec("torch"):
        return Finding(OK, "not checked: there is no torch")
    import torch as library

    from core.device import bf16_is_fast, default_device

    device = default_device()
    values = library.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    error = ((values.bfloat16() @ values.bfloat16()).float() - values @ values).abs().max().item()
    if not error < 0.5:
        return Finding(FAIL, f"a product on {device} is off by {error:.2g}", "--mixed_precision no --dtype float32")
    chosen = "fast, chosen by auto" if bf16_is_fast(device) else "slow, auto chooses float32"
    return Finding(OK, f"right on {device}; {chosen}")


def disk() -> Finding:
    """Free space where runs, weights and temporary files go."""
    from core.packaged import cache_folder

    folders: dict[int, list[Path]] = {}
    for folder in (Path.cwd(), cache_folder().absolute(), Path(tempfile.gettempdir())):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        folders.setdefault(there.stat().st_dev, [there]).append(folder)
    free = [shutil.disk_usage(there).free / GB for there, *_ in folders.values()]
    parts = zip(free, folders.values(), strict=True)
    found = "; ".join(f"{gigabytes:.1f} GB free for {', '.join(map(str, names))}" for gigabytes, (_, *names) in parts)
    if min(free) >= GOOD_DISK_GB:
        return Finding(OK, found)
    state = WARN if min(free) >= LEAST_DISK_GB else FAIL
    return Finding(
        state, found, "export MVP_LAM_CACHE=/other/disk TMPDIR=/other/disk, and give --out there; or free some"
    )


def memory() -> Finding:
    """Memory of the machine or of the container, and how much of it is free now."""
    sizes = _memory()
    if sizes is None:
        return Finding(OK, "not checked: this system does not say (no /proc/meminfo)")
    total, available = sizes
    found = f"{available / GB:.1f} of {total / GB:.1f} GB available"
    if total < LEAST_MEMORY_GB * GB:
        return Finding(FAIL, found, "docker run --memory 16g ..., or another machine")
    if available < GOOD_MEMORY_GB * GB:
        return Finding(WARN, found, "end other programs, or give --workers 1")
    return Finding(OK, found)


def shared_memory() -> Finding:
    """Shared memory, through which loader processes hand over batches."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding(OK, "not checked: there is no /dev/shm")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GB:.2f} of {usage.total / GB:.2f} GB free in {folder}"
    if usage.free >= GOOD_SHARED_MEMORY_GB * GB:
        return Finding(OK, found)
    return Finding(WARN, f"{found}; loader processes may die of it", "docker run --shm-size 16g ... (or --workers 0)")


def build_tools() -> Finding:
    """A compiler and ninja, with which DeepSpeed builds its operators at first use."""
    beside = Path(sys.executable).with_name("ninja")
    lacking = [tool for tool in ("g++", "ninja") if not shutil.which(tool)]
    if not lacking:
        return Finding(OK, "g++ and ninja are there")
    if lacking == ["ninja"] and beside.exists():
        return Finding(WARN, f"ninja is in {beside.parent} alone", f"export PATH={beside.parent}:$PATH")
    fix = "apt-get install g++ ninja-build"
    return Finding(WARN, f"no {' and no '.join(lacking)}; only training with DeepSpeed needs them", fix)


def visual_tower() -> Finding:
    """Weights of the default visual tower on this machine."""
    if not importlib.util.find_spec("torch"):
        return Finding(OK, "not checked: there is no torch")
    from core.packaged import cache_folder
    from core.run import fingerprint_of_file
    from core.weights import CONVERTED, CONVERTED_FINGERPRINT, DEFAULT_TOWER

    fetch = f"{sys.executable} -m core.weights"
    path = cache_folder() / CONVERTED
    if path.exists() and fingerprint_of_file(path) != CONVERTED_FINGERPRINT:
        return Finding(FAIL, f"{path} is damaged", f"rm {path} && {fetch}")
    if path.exists():
        return Finding(OK, f"{path}")
    if importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import try_to_load_from_cache

        official = try_to_load_from_cache(f"timm/{DEFAULT_TOWER}", "model.safetensors")
        if isinstance(official, str):
            return Finding(OK, f"official {DEFAULT_TOWER}, {official}")
    return Finding(WARN, f"{DEFAULT_TOWER} is not on this machine yet; the first run fetches 90 MB", fetch)


def _cuda(found: str) -> Finding:
    import torch as library

    try:
        ones = library.ones(8, 8, device="cuda")
        total = (ones @ ones).sum().item()
    except RuntimeError as error:
        return Finding(FAIL, f"{found} cannot compute on the GPU: {str(error).splitlines()[0]}", INSTALL_TORCH)
    if total != 512:
        return Finding(FAIL, f"{found} computes wrongly on the GPU: 8 x 8 ones give {total}", INSTALL_TORCH)
    names = [library.cuda.get_device_name(index) for index in range(library.cuda.device_count())]
    return Finding(OK, f"{found}, CUDA {library.version.cuda} on {', '.join(names)}")


def _memory() -> tuple[float, float] | None:
    """All and free bytes, of the container where it has a limit."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    total, available = (1024.0 * int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        total = min(total, float(limit.read_text()))
        available = min(available, total - float(used.read_text()))
    return total, available
