"""What the numbers of a robot's controller mean, as an `ActionSpace`, and the way from there to the controller's own.

Source of the conventions: `mani_skill/agents/controllers` 3.0. A normalised controller takes -1..1 for its limits. One
of an end effector turns it by Euler angles about x, y and z in turn, scaled by their *lower* limit, which flips their
sign; a turn that is longer than the limit is shortened. Here turns are rotation vectors, whatever the controller.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from core.spaces import ActionSpace

Kind = Literal[
    "delta_end_effector", "absolute_end_effector", "joint_position", "delta_joint_position", "joint_velocity"
]
FRAMES = {
    "root_translation": "robot_base",
    "body_translation": "end_effector",
    "root_translation:root_aligned_body_rotation": "robot_base",
    "body_translation:body_aligned_body_rotation": "end_effector",
    "root_translation:body_aligned_body_rotation": "robot_base, turned about the end effector's axes",
    "body_translation:root_aligned_body_rotation": "end_effector, turned about the robot base's axes",
}
GRIPPERS = ("panda", "panda_wristcam", "floating_panda_gripper", "fetch")
"""Robots whose gripper is known to be open at the upper limit of its joint and closed at the lower one."""
WHOLE_TURN_RAD = 2 * np.pi
"""Limit of joints that turn without end."""


class ControllerError(ValueError):
    """A controller whose numbers cannot be said in an `ActionSpace`."""


class Part(NamedTuple):
    """One of a robot's parts, such as arm or gripper, with a controller of its own."""

    kind: Kind | None
    """None: a gripper, which goes with any."""
    names: tuple[str, ...]
    units: tuple[str, ...]
    low: Float[np.ndarray, " dims"]
    high: Float[np.ndarray, " dims"]
    native: Callable[[Float[np.ndarray, " dims"]], Float[np.ndarray, " dims"]]
    """The controller's numbers for those of the action space."""
    frame: str | None = None
    """Of positions and turns in space."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A robot's controller, described."""

    space: ActionSpace
    """What an action consists of."""
    held: tuple[str, ...]
    """Parts of the robot that no action moves, because their numbers are of another kind than the arm's."""
    parts: tuple[tuple[str, Part], ...]
    """In the controller's order."""

    def native(self, action: Float[np.ndarray, " dims"]) -> Float32[np.ndarray, " numbers"]:
        """The controller's numbers for an action; what exceeds its limits is clipped."""
        numbers, start, action = [], 0, np.asarray(action, np.float64)
        for name, part in self.parts:
            size = len(part.names)
            mine = np.zeros(size) if name in self.held else action[start : start + size]
            numbers.append(part.native(mine))
            start += 0 if name in self.held else size
        return np.concatenate(numbers).astype(np.float32)


def describe_controller(controller: Any, robot: str) -> Control:
    """What the present controller of `robot` takes.

    Raises:
        ControllerError: it is of a kind that this project cannot describe.
    """
    controllers = getattr(controller, "controllers", None) or {"robot": controller}
    parts = tuple((name, _part(name, each, robot)) for name, each in controllers.items() if _size(each))
    kinds = {name: part.kind for name, part in parts if part.kind is not None}
    kind = kinds.get("arm", next(iter(kinds.values()), None))
    held = tuple(name for name, other in kinds.items() if other != kind)
    for name in held:
        if kinds[name] not in ("delta_joint_position", "joint_velocity"):
            raise ControllerError(f"it moves the {name} by {kinds[name]} and the rest by {kind}")
    moved = [part for name, part in parts if name not in held]
    space = ActionSpace(
        names=tuple(name for part in moved for name in part.names),
        units=tuple(unit for part in moved for unit in part.units),
        kind=kind or "unspecified",
        frame=next((part.frame for part in moved if part.frame), "robot_base"),
        low=tuple(float(value) for part in moved for value in part.low),
        high=tuple(float(value) for part in moved for value in part.high),
    )
    return Control(space=space, held=held, parts=parts)


def _size(controller: Any) -> int:
    return int(controller.single_action_space.shape[0])


def _part(name: str, controller: Any, robot: str) -> Part:
    if name == "gripper" and robot in GRIPPERS and type(controller).__name__ == "PDJointPosMimicController":
        return _gripper(controller)
    describe = DESCRIBED.get(type(controller).__name__)
    if describe is None:
        raise ControllerError(f"it moves the {name} by a {type(controller).__name__}")
    return describe(controller)


def _position(controller: Any) -> Part:
    """Of an end effector that keeps its orientation."""
    config = controller.config
    low, high = (np.broadcast_to(limit, 3).astype(float) for limit in (config.pos_lower, config.pos_upper))
    kind: Kind = "delta_end_effector" if config.use_delta else "absolute_end_effector"
    return Part(kind, ("x", "y", "z"), ("m",) * 3, low, high, _native(config, low, high), _frame(config.frame))


def _pose(controller: Any) -> Part:
    """Of an end effector."""
    config, position = controller.config, _position(controller)
    limit = np.full(3, np.pi)
    if config.normalize_action:
        limit = np.abs(np.broadcast_to(config.rot_lower, 3)).astype(float)

    def native(values: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
        turn = Rotation.from_rotvec(values[3:]).as_euler("XYZ")
        if config.normalize_action:
            turn = np.clip(turn / config.rot_lower, -1.0, 1.0)
        return np.concatenate([position.native(values[:3]), turn])

    return Part(
        position.kind,
        ("x", "y", "z", "rx", "ry", "rz"),
        ("m",) * 3 + ("rad",) * 3,
        np.concatenate([position.low, -limit]),
        np.concatenate([position.high, limit]),
        native,
        position.frame,
    )


def _joints(controller: Any) -> Part:
    """Of joints that go to positions or by increments."""
    config = controller.config
    limits = controller._get_joint_limits().astype(float)
    if config.lower is not None and config.upper is not None:  # as they are written, not as float32
        limits = np.stack([np.broadcast_to(limit, len(limits)) for limit in (config.lower, config.upper)], axis=1)
    limits = np.clip(limits, -WHOLE_TURN_RAD, WHOLE_TURN_RAD) if not np.isfinite(limits).all() else limits
    low, high = limits.T
    names = tuple(joint.name for joint in controller.joints[: len(low)])
    kind: Kind = "delta_joint_position" if config.use_delta else "joint_position"
    return Part(kind, names, _units(controller.joints[: len(low)]), low, high, _native(config, low, high))


def _velocities(controller: Any) -> Part:
    """Of joints that are told how fast to go."""
    config, size = controller.config, _size(controller)
    low, high = (np.broadcast_to(limit, size).astype(float) for limit in (config.lower, config.upper))
    names = tuple(joint.name for joint in controller.joints[:size])
    units = tuple(f"{unit}/s" for unit in _units(controller.joints[:size]))
    return Part("joint_velocity", names, units, low, high, _native(config, low, high))


def _base(controller: Any) -> Part:
    """Of a base that drives: forward (and to the left, where it can), and turns."""
    drives_sideways = _size(controller) == 3
    names = ("base_forward", "base_left", "base_turn") if drives_sideways else ("base_forward", "base_turn")
    units = tuple("rad/s" if name == "base_turn" else "m/s" for name in names)
    return _velocities(controller)._replace(names=names, units=units)


def _gripper(controller: Any) -> Part:
    """Of a gripper: 1 open, -1 closed."""
    config, one = controller.config, np.ones(1)
    middle, half = (config.upper + config.lower) / 2, (config.upper - config.lower) / 2

    def native(values: Float[np.ndarray, "1"]) -> Float[np.ndarray, "1"]:
        command = np.clip(values, -1.0, 1.0)
        return command if config.normalize_action else middle + half * command

    return Part(None, ("gripper",), ("open",), -one, one, native)


DESCRIBED: dict[str, Callable[[Any], Part]] = {
    "PDEEPosController": _position,
    "PDEEPoseController": _pose,
    "PDJointPosController": _joints,
    "PDJointVelController": _velocities,
    "PDBaseVelController": _base,
    "PDBaseForwardVelController": _base,
}


def _native(config: Any, low: np.ndarray, high: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The controller's numbers for those between two limits: the same, or -1..1 where it is normalised."""
    if not config.normalize_action:
        return lambda values: np.clip(values, low, high)
    middle, half = (high + low) / 2, (high - low) / 2
    return lambda values: np.clip((values - middle) / half, -1.0, 1.0)


def _frame(name: str) -> str:
    if name not in FRAMES:
        raise ControllerError(f"it moves in the frame {name!r}, which is none of {', '.join(FRAMES)}")
    return FRAMES[name]


def _units(joints: Any) -> tuple[str, ...]:
    return tuple("m" if "prismatic" in str(joint.type) else "rad" for joint in joints)
