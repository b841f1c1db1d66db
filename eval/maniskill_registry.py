"""Any task and robot that ManiSkill registers: found by name, refused before anything starts where files are absent."""

import functools
import gc
import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from eval.maniskill_options import PREFERRED_CONTROLLER, ManiSkillOptions
from eval.robot_meshes import use_panda_meshes
from eval.tasks import CUBE_HALF_SIZE_M, EVALUATION_TASKS, TASKS, Task, unknown_task

DOWNLOAD = "python -m mani_skill.utils.download_asset"
SHADER = "minimal"
NO_RENDERER = (
    "the simulator finds no device to render with; run scripts/setup.sh, which installs Mesa's software renderer "
    "(packages libvulkan1 and mesa-vulkan-drivers, version 25 or newer) where there is no graphics card"
)


@functools.cache
def import_simulator() -> None:
    """Import ManiSkill, once and quietly."""
    os.environ.setdefault("MS_RENDERER_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", module=r"(mani_skill|gymnasium|sapien|toppra).*")
    import mani_skill.envs

    mani_skill.logger.setLevel(logging.ERROR)
    # ManiSkill collects garbage whenever it builds a scene: 0.35 s to walk through all that imports alone have left
    # behind, 0.02 s without.
    gc.freeze()


def registered_task(name: str) -> Task:
    """The task called `name`: as eval/tasks.py describes it, or else as its registration with ManiSkill does.

    Raises:
        ValueError: there is none; the message names close ones.
    """
    described = TASKS | EVALUATION_TASKS
    if name in described:
        return described[name]
    import_simulator()
    from mani_skill.utils.registration import REGISTERED_ENVS

    if name not in REGISTERED_ENVS:
        raise ValueError(unknown_task(name, [*described, *(each for each in REGISTERED_ENVS if each not in described)]))
    spec = REGISTERED_ENVS[name]
    return Task(
        environment=name,
        instructions=(instruction_from(name),),
        max_steps=spec.max_episode_steps,
        is_derived=True,
    )


def instruction_from(name: str) -> str:
    """An instruction made of a task's name: `OpenCabinetDrawer-v1` gives `open cabinet drawer`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|\d+|[a-z]+", name.rsplit("-v", 1)[0])
    return " ".join(words).lower()


def specification(task: Task) -> Any:
    """ManiSkill's registration of the task's scene: class, step limit, files to download."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    return REGISTERED_ENVS[task.environment]


def robot_of(task: Task, wanted: str | None) -> str | None:
    """The robot to make the scene with: the wanted one, the task's, or None where the scene alone knows it.

    Raises:
        ValueError: ManiSkill's task does not offer the wanted one, or has several robots.
    """
    from mani_skill.agents.registration import REGISTERED_AGENTS

    scene = specification(task).cls
    parameter = inspect.signature(scene.__init__).parameters.get("robot_uids")
    offered = scene.SUPPORTED_ROBOTS or (sorted(REGISTERED_AGENTS) if parameter is not None else [])
    if wanted is None:
        default = parameter.default if parameter is not None and task.robot is None else task.robot
        if isinstance(default, tuple):
            raise ValueError(f"{task.environment} has {len(default)} robots; this benchmark moves one")
        return default
    if wanted not in offered or parameter is None:
        names = (
            ", ".join(name for name in offered if isinstance(name, str)) if parameter is not None else "only its own"
        )
        raise ValueError(f"robot: {task.environment} does not offer {wanted!r}; there are: {names}")
    return wanted


def require_task_files(task: Task) -> None:
    """Refuse a task whose files are not on this machine.

    Raises:
        FileNotFoundError: the message holds the command that gets them.
    """
    _require(task.environment, specification(task).asset_download_ids)


def scene_class(task: Task, meshes: str) -> Any:
    """ManiSkill's class of the task's scene, with the cube of the task and the wanted meshes of the Panda."""
    stock = specification(task).cls

    def load_agent(self: Any, *arguments: Any, **named: Any) -> None:
        _require_robot_files(self.robot_uids)
        use_panda_meshes(meshes)
        stock._load_agent(self, *arguments, **named)

    changes: dict[str, Any] = {"_load_agent": load_agent}
    if task.cube_half_size_m != CUBE_HALF_SIZE_M:
        changes["cube_half_size"] = task.cube_half_size_m
    return type(stock.__name__, (stock,), changes)


def _require_robot_files(robots: Any) -> None:
    """Refuse robots whose files are not there; ManiSkill itself would wait at a prompt for an answer."""
    from mani_skill.agents.registration import REGISTERED_AGENTS

    for robot in robots if isinstance(robots, tuple) else (robots,):
        if robot in REGISTERED_AGENTS:
            found = REGISTERED_AGENTS[robot]
            file = found.agent_cls.urdf_path or found.agent_cls.mjcf_path
            _require(f"robot {robot}", found.asset_download_ids)
            if file is not None and not os.path.exists(str(file)):
                raise FileNotFoundError(
                    f"robot {robot} needs {file}, which is not there; `{DOWNLOAD} {robot}` may get it"
                )


def _require(what: str, wanted: Iterable[str]) -> None:
    missing = [name for name in wanted or () if not _is_there(name)]
    if missing:
        commands = " && ".join(f"{DOWNLOAD} {name} -y" for name in missing)
        where = os.environ.get("MS_ASSET_DIR", "~/.maniskill")
        raise FileNotFoundError(
            f"{what} needs files that are not on this machine (looked below {where}, which MS_ASSET_DIR sets); "
            f"get them with: {commands}"
        )


def _absent(what: str, file: str) -> str:
    """The sentence about a file that is not there, with the command that gets what it belongs to."""
    from mani_skill.utils.assets import DATA_SOURCES

    folders = {name: str(source.output_dir / (source.target_path or name)) for name, source in DATA_SOURCES.items()}
    owners = sorted(
        (name for name, folder in folders.items() if file.startswith(folder)), key=lambda n: -len(folders[n])
    )
    hint = f"get it with: {DOWNLOAD} {owners[0]} -y" if owners else f"`{DOWNLOAD} --list scene` tells what can be got"
    return f"{what} needs {file}, which is not there; {hint}"


def _is_there(name: str) -> bool:
    from mani_skill.utils import assets

    sources = assets.expand_data_group_into_individual_data_source_ids(name) if name in assets.DATA_GROUPS else [name]
    return all(assets.is_data_source_downloaded(source) for source in sources)


def make_environment(task: Task, options: ManiSkillOptions, image_size: int | None, scenes: int = 1) -> Any:
    """Scenes of a task, without ManiSkill's own images; `image_size` is that of its own cameras where they are used.

    Raises:
        ValueError: the task has not this robot, or the robot not this controller.
        FileNotFoundError: files must be downloaded first.
        RuntimeError: there is no device to render with, or to simulate on.
    """
    import_simulator()
    import torch

    if options.physics == "physx_cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"physics = {options.physics} needs a CUDA GPU, and torch finds none; leave it at physx_cpu")
    require_task_files(task)
    robot = robot_of(task, options.robot)
    sized = {} if image_size is None else {"width": image_size, "height": image_size, "shader_pack": SHADER}
    settings = {
        **specification(task).default_kwargs,
        **({} if robot is None else {"robot_uids": robot}),
        "obs_mode": "none",
        "reward_mode": "none" if "none" in specification(task).cls.SUPPORTED_REWARD_MODES else "sparse",
        "num_envs": scenes,
        "sim_backend": options.physics,
        "render_backend": "gpu" if torch.cuda.is_available() else "cpu",
        "sensor_configs": sized,
        "human_render_camera_configs": sized,
    }
    return _started(scene_class(task, options.robot_meshes), settings, options.controller)


def set_shader() -> None:
    """Let cameras that are added from now on use this project's shader, whatever the simulator's own cameras use."""
    from mani_skill.render import PREBUILT_SHADER_CONFIGS, set_shader_pack

    set_shader_pack(PREBUILT_SHADER_CONFIGS[SHADER])


@contextmanager
def renderer_needed() -> Iterator[None]:
    """Where a simulator finds no device to render with, the error says what to do; others stay as they are."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("device|vulkan|vk|render", str(error), re.IGNORECASE):
            raise
        raise RuntimeError(f"{NO_RENDERER} (the simulator said: {error})") from error


@renderer_needed()
def _started(scene: Any, settings: dict[str, Any], controller: str | None) -> Any:
    """The scene with the wanted controller, or with the preferred one, or the robot's first where it has none such."""
    try:
        return scene(control_mode=controller or PREFERRED_CONTROLLER, **settings)
    except AssertionError as error:  # ManiSkill's word for a controller that the robot has not
        if "not in supported modes" not in str(error):
            raise
        if controller is not None:
            raise ValueError(f"controller: {error}") from None
    except FileNotFoundError as error:  # what a task's registration does not say that it needs
        if error.filename is None:
            raise
        raise FileNotFoundError(_absent(scene.__name__, str(error.filename))) from error
    return scene(control_mode=None, **settings)
