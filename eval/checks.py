"""What closed-loop evaluation must have: a renderer, simulators and their assets, a port for the policy server."""

import importlib.metadata
import importlib.util
import shutil
import socket
import subprocess
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
LEAST_MESA = 25
"""Major version; ManiSkill refuses the software renderer of older ones."""


def rendering() -> Finding:
    """Whether ManiSkill's renderer starts on the device that it would choose, and on which driver."""
    if not importlib.util.find_spec("mani_skill") or not importlib.util.find_spec("sapien"):
        return Finding(WARN, "no ManiSkill here; only policies without it can be tried", _install("sim"))
    kind, mesa = ("cuda", "") if shutil.which("nvidia-smi") else ("cpu", _mesa())
    try:
        # ManiSkill imports it first, and it lacks a library on bare systems.
        import cv2  # noqa: F401
        import sapien

        sapien.render.RenderSystem(sapien.Device(kind))
        summary = sapien.render.get_device_summary()
    except (ImportError, RuntimeError, OSError) as error:
        return Finding(FAIL, f"the simulator cannot render on the {kind} device: {error}{mesa}", SET_UP)
    names = [line.removeprefix("GPU:").strip() for line in summary.splitlines() if line.startswith("GPU:")]
    return Finding(OK, f"Vulkan on the {kind} device of {', '.join(names)}{mesa}")


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
    from eval.simpler_assets import NEEDED, OFFICIAL, AssetsError, asset_folder, download, require_assets

    try:
        kind = require_assets()
    except AssetsError as error:
        return Finding(WARN, error.what, error.command)
    found = f"{kind} in {asset_folder()}"
    return Finding(OK, found) if kind == OFFICIAL else Finding(WARN, found, download(NEEDED))


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


def _mesa() -> str:
    """The version of Mesa's software renderer, in words; empty where the system's packages do not tell it."""
    ask = ["dpkg-query", "-W", "-f=${Version}", "mesa-vulkan-drivers"]
    if not shutil.which(ask[0]):
        return ""
    version = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    if not version:
        return ""
    is_old = int(version.split(":")[-1].split(".")[0]) < LEAST_MESA
    return f"; Mesa {version}" + (f", {LEAST_MESA} or newer is needed" if is_old else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extra: str) -> str:
    return f"{sys.executable} -m pip install -e '.[{extra}]'"
