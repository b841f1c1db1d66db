"""What closed-loop evaluation must have: a renderer, simulators and their assets, a port for the policy server."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from ctypes.util import find_library

from core.doctor import FAIL, OK, SET_UP, WARN, Finding

CHECKS = {
    "rendering": "eval.checks:rendering",
    "EGL": "eval.checks:egl",
    "motion planning": "eval.checks:motion_planning",
    "SIMPLER assets": "eval.checks:simpler_assets",
    "LIBERO": "eval.checks:libero",
    "policy server packages": "eval.checks:policy_server_packages",
    "policy server port": "eval.checks:policy_server_port",
}
SERVER_PORT = 8000
"""Default of the policy server; a copy, as its settings need packages that may be missing; a test compares them."""


def rendering() -> Finding:
    """Whether ManiSkill's renderer starts on the device that it would choose, and on which driver."""
    if not importlib.util.find_spec("mani_skill") or not importlib.util.find_spec("sapien"):
        return Finding(WARN, "no ManiSkill here; only policies without it can be tried", _install("sim"))
    kind = "cuda" if shutil.which("nvidia-smi") else "cpu"
    try:
        # ManiSkill imports it first, and it lacks a library on bare systems.
        import cv2  # noqa: F401
        import sapien

        sapien.render.RenderSystem(sapien.Device(kind))
        summary = sapien.render.get_device_summary()
    except (ImportError, RuntimeError, OSError) as error:
        return Finding(FAIL, f"the simulator cannot render on the {kind} device: {error}", SET_UP)
    names = [line.removeprefix("GPU:").strip() for line in summary.splitlines() if line.startswith("GPU:")]
    return Finding(OK, f"Vulkan on the {kind} device of {', '.join(names)}")


def egl() -> Finding:
    """Libraries that MuJoCo renders through without a screen, and NVIDIA's Vulkan too."""
    there = [name for name in ("EGL", "OSMesa") if find_library(name)]
    if "EGL" in there or (there and not shutil.which("nvidia-smi")):
        return Finding(OK, f"{' and '.join(there)} are there" if len(there) > 1 else f"{there[0]} is there")
    needed = "LIBERO (MuJoCo) and NVIDIA's Vulkan" if shutil.which("nvidia-smi") else "LIBERO (MuJoCo)"
    return Finding(WARN, f"no libEGL; {needed} cannot render without a screen", "apt-get install libegl1 libosmesa6")


def motion_planning() -> Finding:
    """Whether the planner that ManiSkill's own example experts use can run; this project's experts do without."""
    versions = {name: _version(name) for name in ("mplib", "numpy")}
    if versions["mplib"] is None:
        return Finding(OK, "no mplib, and no expert of this project needs it")
    found = f"mplib {versions['mplib']} with numpy {versions['numpy']}"
    is_old = versions["mplib"].startswith("0.1.")
    if is_old and int((versions["numpy"] or "0").split(".")[0]) >= 2:
        return Finding(
            WARN,
            f"{found} crashes when it plans; only ManiSkill's own motion-planning examples use it, in an environment "
            "of their own",
            "python3 -m venv planning && planning/bin/pip install mani-skill 'numpy<2' 'opencv-python<4.12'",
        )
    return Finding(OK, found)


def simpler_assets() -> Finding:
    """Whether the files of the four WidowX tasks lie where ManiSkill looks, and whether they are the official ones."""
    from eval.maniskill_registry import DOWNLOAD
    from eval.simpler_assets import NEEDED, OFFICIAL, asset_folder, require_assets

    folder = asset_folder()
    lacking = {name: [file for file in files if not (folder / file).is_file()] for name, files in NEEDED.items()}
    wanted = [name for name, files in lacking.items() if files]
    fix = " && ".join(f"{DOWNLOAD} {name}" for name in wanted or NEEDED)
    if wanted:
        count = sum(map(len, lacking.values()))
        where = f"{folder} ({'as MS_ASSET_DIR says' if 'MS_ASSET_DIR' in os.environ else 'MS_ASSET_DIR is not set'})"
        return Finding(WARN, f"{count} files are not in {where}, such as {lacking[wanted[0]][0]}", fix)
    kind = require_assets()
    return Finding(OK, f"{kind} in {folder}") if kind == OFFICIAL else Finding(WARN, f"{kind} in {folder}", fix)


def libero() -> Finding:
    """Whether LIBERO, which is optional, is there with its files and with something fit to render it."""
    from eval.libero_package import LiberoError, choose_renderer, import_libero, package_version

    try:
        import_libero()
    except LiberoError as error:
        return Finding(WARN, error.what, error.command)
    return Finding(OK, f"{package_version()} (an unofficial repackaging), rendered by {choose_renderer()}")


def policy_server_packages() -> Finding:
    """What a policy is served, and asked, with over the network."""
    versions = {name: _version(name) for name in ("websockets", "msgpack")}
    lacking = [name for name, version in versions.items() if version is None]
    if lacking:
        fix = f"{sys.executable} -m pip install {' '.join(lacking)}"
        return Finding(WARN, f"no {' and no '.join(lacking)}; policies cannot be served or asked over the network", fix)
    return Finding(OK, ", ".join(f"{name} {version}" for name, version in versions.items()))


def policy_server_port() -> Finding:
    """Whether the policy server's usual port is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As servers do: a connection that has just ended does not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", SERVER_PORT))
        except OSError as error:
            fix = f"python scripts/serve_policy.py --port {SERVER_PORT + 1} ... (or end what listens there)"
            return Finding(WARN, f"{SERVER_PORT} on 127.0.0.1 cannot be had: {error.strerror}", fix)
    return Finding(OK, f"{SERVER_PORT} on 127.0.0.1 is free")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extra: str) -> str:
    return f"{sys.executable} -m pip install -e '.[{extra}]'"
