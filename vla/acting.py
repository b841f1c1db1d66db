"""What a checkpoint says besides its weights before it acts, and what is asked of an observation."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from core.checkpoint import CheckpointError
from core.policy import Observation
from core.spaces import ActionSpace
from core.statistics import Statistics
from vla.checkpoint import VlaDescription


class ObservationError(ValueError):
    """An observation that a policy cannot act on."""


class ActingFacts(NamedTuple):
    """Read off the header of a fine-tuned checkpoint."""

    actions: Statistics
    proprioception: Statistics | None
    """None: it reads none."""
    action_space: ActionSpace
    control_hz: float
    camera_sizes: dict[str, tuple[int, int]]
    """(height, width) of the cameras that it was trained on; empty in checkpoints that do not say it."""


def acting_facts(description: VlaDescription, facts: dict[str, Any], source: str) -> ActingFacts:
    """Of a header, whose parts have to fit each other.

    Raises:
        CheckpointError: it was never fine-tuned, lacks something, or its statistics or action space have other sizes.
        StatisticsError: it holds no action statistics.
    """
    if description.head is None:
        raise CheckpointError(f"{source} was pretrained but never fine-tuned; run scripts/finetune_vla.py on it")
    if missing := {"action_space", "control_hz"} - set(facts):
        raise CheckpointError(f"{source} does not act, for it has no {' and no '.join(sorted(missing))}")
    statistics = facts.get("statistics", {})
    actions, senses = Statistics.from_json(statistics.get("actions")), None
    space = ActionSpace(**facts["action_space"])
    sizes = {"action space": space.dims, "action statistics": len(actions.mean)}
    wanted = dict.fromkeys(sizes, description.action_dims)
    if description.proprioception_dims:
        if "proprioception" not in statistics:
            raise CheckpointError(f"{source} reads proprioception and holds no statistics of it; fine-tune it again")
        senses = Statistics.from_json(statistics["proprioception"])
        sizes["proprioception statistics"] = len(senses.mean)
        wanted["proprioception statistics"] = description.proprioception_dims
    if wrong := [f"its {name} has {sizes[name]}, not {wanted[name]}" for name in sizes if sizes[name] != wanted[name]]:
        raise CheckpointError(f"{source} does not act, for numbers of dimensions differ: {', '.join(wrong)}")
    cameras = {view: tuple(size) for view, size in facts.get("camera_sizes", {}).items()}
    return ActingFacts(actions, senses, space, facts["control_hz"], cameras)


def senses_of(observation: Observation, statistics: Statistics | None) -> Float[np.ndarray, " dims"]:
    """Normalised proprioception, empty where a policy reads none.

    Raises:
        ObservationError: it is missing, has other dimensions, or is not finite.
    """
    if statistics is None:
        return np.zeros(0, np.float32)
    values, dims = observation.proprioception, len(statistics.mean)
    if values is None:
        raise ObservationError("the policy was trained with proprioception, the observation has none")
    if np.shape(values) != (dims,):
        raise ObservationError(f"the proprioception has the shape {np.shape(values)}, the policy reads ({dims},)")
    if not np.isfinite(values).all():
        raise ObservationError(f"the proprioception is not finite: {np.asarray(values).tolist()}")
    return statistics.normalise(values)
