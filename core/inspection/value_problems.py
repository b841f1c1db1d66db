"""Problems of actions and proprioception: absent, not finite, constant, in another convention than is said."""

from collections.abc import Iterator, Sequence

import numpy as np

from core.inspection.problems import Problem, count_of, problem
from core.inspection.values import Values
from core.spaces import ActionSpace
from core.store import EpisodeRecord, Store

OUTLIERS = 0.05
"""Part of the whole range in which 98 % of the values lie where the rest are outliers."""
FEWEST_ROWS = 200
"""Frames that it takes to say so."""
JITTER = 1e-6
"""Range of 98 % of the values up to which a dimension is as good as constant; of large values, this part of them."""
FAR_OUTSIDE = 0.1
"""Part of the frames outside of the stated range from which on the units are doubted."""
TOLERANCE = 1e-3
"""Part of a range by which values may lie outside of it."""
NEAR_ZERO = 0.1
"""Where the range of a gripper command starts that is not meant to start at -1."""
CLOSED_STARTS = 0.8
"""Part of the episodes that start with a closed gripper from which on its sign is doubted."""
FEWEST_STARTS = 5
"""Episodes that it takes to doubt it."""
IDLE_S = 1.0
"""Time without any action that is worth a look."""


def action_problems(store: Store, actions: Values | None) -> Iterator[Problem]:
    """All problems of actions."""
    space = store.info.action_space
    if actions is None or space is None:
        yield problem(
            "note",
            "no_actions",
            "The store holds no actions: latent actions can be learned from it, a policy cannot.",
            "Nothing to do if it is meant as video alone; else name the actions in the mapping.",
        )
        return
    yield from _unreadable(actions, "actions")
    yield from _missing(store.episodes, actions)
    if space.kind == "unspecified":
        yield problem(
            "warning",
            "unspecified_action_space",
            "What the actions mean is not stated (action space of kind unspecified): increments are not summed over "
            "several steps, and a policy learned from them cannot be run on another robot.",
            "State action_space in the mapping and convert again.",
        )
    if len(actions.episodes):
        yield from _constant(actions, "action", "the actions in the mapping")
        yield from _near_constant(actions)
        yield from _outliers(actions)
        yield from _outside(actions, space)
        yield from _gripper(actions)
        yield from _idle(store, actions, space)


def sense_problems(senses: Values | None) -> Iterator[Problem]:
    """All problems of proprioception."""
    if senses is None:
        return
    yield from _unreadable(senses, "proprioception")
    if len(senses.episodes) and (senses.high.max(0) == senses.low.min(0)).all():
        yield problem(
            "warning",
            "constant_proprioception",
            "The proprioception never changes in the whole store.",
            "Correct the proprioception in the mapping, or leave it out ([]).",
        )
    if senses.missing:
        yield problem(
            "note",
            "missing_proprioception",
            f"{count_of(len(senses.missing), 'episode')} without proprioception.",
            "Nothing to do if that is how they were recorded.",
            senses.missing,
        )


def _unreadable(values: Values, what: str) -> Iterator[Problem]:
    if values.unreadable:
        first = next(iter(values.unreadable.values()))
        yield problem(
            "fatal",
            f"unreadable_{what}",
            f"The {what} of {count_of(len(values.unreadable), 'episode')} cannot be used, the first: {first}",
            "Mend these episodes in the source, or leave them out (scripts/convert_episodes.py --skip-bad).",
            values.unreadable,
        )


def _missing(records: Sequence[EpisodeRecord], actions: Values) -> Iterator[Problem]:
    labelled = [number for number in actions.missing if records[number].is_labelled]
    if labelled:
        yield problem(
            "fatal",
            "labelled_without_actions",
            f"{count_of(len(labelled), 'episode')} without actions but labelled: training a policy stops there.",
            "Leave them out, or mark them as unlabelled where the store is written.",
            labelled,
        )
    if silent := sorted(set(actions.missing) - set(labelled)):
        yield problem(
            "note",
            "missing_actions",
            f"{count_of(len(silent), 'unlabelled episode')} without actions that an audit could look at.",
            "Nothing to do.",
            silent,
        )


def _constant(values: Values, what: str, where: str) -> Iterator[Problem]:
    is_constant = values.high.max(0) == values.low.min(0)
    if not is_constant.any():
        return
    names = ", ".join(f"{values.names[d]} = {values.low[0, d]:.4g}" for d in np.flatnonzero(is_constant))
    everything = bool(is_constant.all())
    yield problem(
        "fatal" if everything else "warning",
        f"constant_{what}",
        f"Of {count_of(len(values.names), f'{what} dimension')}, {'all' if everything else int(is_constant.sum())} "
        f"never change: {names}.",
        f"Check {where}: another column may be meant. Otherwise it does no harm, and teaches nothing.",
    )


def _is_near_constant(actions: Values) -> np.ndarray:
    """Dimensions that change, but in fewer than 1 % of the frames, or by no more than rounding."""
    largest = np.maximum(np.abs(actions.q01), np.abs(actions.q99))
    is_narrow = actions.q99 - actions.q01 <= JITTER * np.maximum(1, largest)
    return is_narrow & (actions.high.max(0) > actions.low.min(0))


def _near_constant(actions: Values) -> Iterator[Problem]:
    found = _is_near_constant(actions)
    if not found.any():
        return
    low, high = actions.low.min(0), actions.high.max(0)
    usual = np.median(actions.rows, 0)
    margin = JITTER * np.maximum(1, np.abs(usual))
    share = 100 * (np.abs(actions.rows - usual) <= margin).mean(0)
    values = "; ".join(
        f"{actions.names[d]} is {usual[d]:.4g} in {share[d]:.4g} % of the frames (in all from {low[d]:.4g} to "
        f"{high[d]:.4g})"
        for d in np.flatnonzero(found)
    )
    moves = ((actions.low < usual - margin) | (actions.high > usual + margin))[:, found].any(1)
    yield problem(
        "warning",
        "near_constant_action",
        f"Of {count_of(len(actions.names), 'action dimension')}, {int(found.sum())} hardly ever change: {values}.",
        "Check the actions in the mapping: another column may be meant. If it is right, a policy will learn the usual "
        "value and little else.",
        actions.episodes[moves],
    )


def _outliers(actions: Values) -> Iterator[Problem]:
    low, high, q01, q99 = actions.low.min(0), actions.high.max(0), actions.q01, actions.q99
    usual = q99 - q01
    # Of fewer rows, the quantiles are the extremes themselves.
    few = (usual < OUTLIERS * (high - low)) & ~actions.is_gripper & (len(actions.rows) >= FEWEST_ROWS)
    few &= ~_is_near_constant(actions)
    if few.any():
        ranges = "; ".join(
            f"{actions.names[d]} between {q01[d]:.4g} and {q99[d]:.4g}, in all from {low[d]:.4g} to {high[d]:.4g}"
            for d in np.flatnonzero(few)
        )
        far = ((actions.low < q01 - usual) | (actions.high > q99 + usual))[:, few].any(1)
        yield problem(
            "warning",
            "outliers",
            f"A few values lie far from the rest and set its scale. 98 % of the actions: {ranges}.",
            "Look for jumps (angles that wrap around, faults of recording) and leave such episodes out.",
            actions.episodes[far],
        )


def _outside(actions: Values, space: ActionSpace) -> Iterator[Problem]:
    if space.low is None or space.high is None:
        return
    margin = TOLERANCE * (np.array(space.high) - np.array(space.low))
    bottom, top = np.array(space.low) - margin, np.array(space.high) + margin
    outside = ((actions.low < bottom) | (actions.high > top)) & ~actions.is_gripper
    if outside.any():
        share = ((actions.rows < bottom) | (actions.rows > top)).mean(0)
        ranges = "; ".join(
            f"{actions.names[d]} from {actions.low[:, d].min():.4g} to {actions.high[:, d].max():.4g} (stated: "
            f"{space.low[d]:.4g} to {space.high[d]:.4g}; {100 * share[d]:.2g} % of the frames outside)"
            for d in np.flatnonzero(outside.any(0))
        )
        yield problem(
            "fatal" if share[outside.any(0)].max() > FAR_OUTSIDE else "warning",
            "outside_of_range",
            f"Actions leave the range of the action space: {ranges}.",
            "Check the units (scale in the mapping), or state the real low and high of the action space.",
            actions.episodes[outside.any(1)],
        )


def _gripper(actions: Values) -> Iterator[Problem]:
    for dim in np.flatnonzero(actions.is_gripper):
        name, low, high = actions.names[dim], float(actions.low[:, dim].min()), float(actions.high[:, dim].max())
        if max(-low, high) > 1 + TOLERANCE:
            yield problem(
                "fatal" if max(-low, high) > 1.1 else "warning",
                "gripper_range",
                f"The gripper command {name} reaches {low:.4g} and {high:.4g}; -1 (closed) to 1 (open) is meant.",
                "Bring it into that range with scale and offset in the mapping.",
                actions.episodes[(actions.low[:, dim] < -1 - TOLERANCE) | (actions.high[:, dim] > 1 + TOLERANCE)],
            )
        elif abs(low) < NEAR_ZERO and high > low:
            yield problem(
                "fatal",
                "gripper_range",
                f"The gripper command {name} lies between {low:.4g} and {high:.4g}; -1 is closed and 1 open here, so a "
                "policy would never close it.",
                "For 0 closed and 1 open, give scale: 2 and offset: -1 in the mapping; for 0 open, scale: -2 and "
                "offset: 1; for metres, scale by the whole opening.",
            )
        else:
            yield from _gripper_sign(actions, int(dim))


def _gripper_sign(actions: Values, dim: int) -> Iterator[Problem]:
    """Episodes usually start with an open gripper; 1 is open."""
    moved = actions.high[:, dim] > actions.low[:, dim]
    closed = (actions.first[:, dim] < 0) & moved
    if moved.sum() >= FEWEST_STARTS and closed.sum() > CLOSED_STARTS * moved.sum():
        yield problem(
            "warning",
            "gripper_sign",
            f"{int(closed.sum())} of the {int(moved.sum())} episodes in which the gripper {actions.names[dim]} moves "
            "start with it closed (below 0). Most tasks start with an open one: the sign may be the other one.",
            "Look at the first frames; if the gripper is open there, give scale: -1 in the mapping.",
            actions.episodes[closed],
        )


def _idle(store: Store, actions: Values, space: ActionSpace) -> Iterator[Problem]:
    """Exact zeros mean "stay" where actions are increments or velocities."""
    if not (space.kind.startswith("delta") or space.kind.endswith("velocity")):
        return
    lengths = np.array([store.episodes[number].length for number in actions.episodes.tolist()])
    all_zero = actions.idle_frames >= lengths
    if all_zero.any():
        yield problem(
            "warning",
            "zero_actions",
            f"In {count_of(int(all_zero.sum()), 'episode')} every action is 0.",
            "Leave them out: they teach to stand still.",
            actions.episodes[all_zero],
        )
    idle = (actions.idle_frames > IDLE_S * store.info.control_hz) & ~all_zero
    if idle.any():
        yield problem(
            "warning" if idle.sum() > len(idle) / 2 else "note",
            "idle_start",
            f"{count_of(int(idle.sum()), 'episode')} with more than {IDLE_S:g} s of zero actions at the start, at most "
            f"{actions.idle_frames[idle].max() / store.info.control_hz:.1f} s.",
            "Cut such starts, or a policy may learn to wait.",
            actions.episodes[idle],
        )
