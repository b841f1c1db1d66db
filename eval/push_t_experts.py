"""The scripted expert of PushT: plans one push at a time by a model of how the T slides, and looks again after each.

Model: what is pushed slowly moves along the force on it and turns by the torque, in the proportion of an ellipsoid
(Lynch, Maekawa and Tanie, 1992); the stick does not slip along the T. A place of the T is (x, y, turn), in m and rad.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from eval.expert_hand import CLOSED, Hand, Intention

FACES = (
    # From, to, way into the T, points; m, from its centre of mass. Inner corners are left out: no room for the stick.
    ((-0.1, -0.0625), (0.1, -0.0625), (0.0, 1.0), 13),
    ((-0.1, -0.0125), (-0.048, -0.0125), (0.0, -1.0), 4),
    ((0.048, -0.0125), (0.1, -0.0125), (0.0, -1.0), 4),
    ((-0.1, -0.0625), (-0.1, -0.0125), (1.0, 0.0), 4),
    ((0.1, -0.0625), (0.1, -0.0125), (-1.0, 0.0), 4),
    ((-0.025, 0.0095), (-0.025, 0.1375), (1.0, 0.0), 9),
    ((0.025, 0.0095), (0.025, 0.1375), (-1.0, 0.0), 9),
    ((-0.025, 0.1375), (0.025, 0.1375), (0.0, -1.0), 4),
)
SLANTS_DEG = (-25.0, 0.0, 25.0)
"""Directions of a push, from straight into the face."""
TURNING_M2 = 0.008
"""How little the T turns by a torque: movement by force over turn by torque, measured."""
STEP_M, STEPS = 0.004, 40
"""Lengths of a push that are thought through."""
TURN_WORTH_M = 0.07
"""Distance that counts as much as a turn by 1 rad."""
GOAL_SHIFT_M = np.array([-0.004, -0.002, 0.0])
"""From the grey T to where ManiSkill, which rounds to pixels of 4.7 mm, sees most overlap."""
SOLVED_M = 0.004
ANOTHER_PUSH_M = 0.004
"""What a second push must gain to be reckoned with."""
STICK_M, CLEARANCE_M = 0.012, 0.01
BACK_M = 0.03
"""How far the stick goes back before it rises: it would take the T along."""
LOW_M, HIGH_M, STUCK_M = 0.02, 0.09, 0.035


def _pushes() -> Float[np.ndarray, "3 pushes 2"]:
    """Where to push, the way into the face there, and the direction, from the T's own centre."""
    found = []
    for start, end, inwards, count in FACES:
        for part in np.linspace(0.1, 0.9, count):
            for slant in np.deg2rad(SLANTS_DEG):
                place = (1 - part) * np.array(start) + part * np.array(end)
                found.append((place, np.array(inwards), _turned(np.array([inwards]), slant)[0]))
    return np.array(found).transpose(1, 0, 2)


def _turned(vectors: Float[np.ndarray, "n 2"], by_rad: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "n 2"]:
    cos, sin = np.cos(by_rad), np.sin(by_rad)
    x, y = vectors.T
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)


PLACES, INWARDS, DIRECTIONS = _pushes()


def push_t(hand: Hand) -> Iterator[Intention]:
    """Push the T onto the grey one, push by push."""
    upright, random = hand.pose[:3, :3], np.random.default_rng(0)
    goal = _place_of(hand.thing("goal_tee")) + GOAL_SHIFT_M
    while _miss(tee := _place_of(hand.thing("tee")), goal) > SOLVED_M:
        push, length_m = _choose(tee, goal, random)
        place, inwards, along = _turned(np.stack([PLACES[push], INWARDS[push], DIRECTIONS[push]]), tee[2])
        touch = tee[:2] + place - STICK_M * inwards
        start = touch - CLEARANCE_M * inwards
        yield from _reach(hand, _at(hand.pose[:2, 3], HIGH_M, upright), within_m=0.025)
        yield from _reach(hand, _at(start, HIGH_M, upright), within_m=0.006)
        yield from _reach(hand, _at(start, LOW_M, upright), within_m=0.006)
        if hand.pose[2, 3] < STUCK_M:
            yield from _push(hand, touch, along, length_m, upright)
            yield from _reach(hand, _at(hand.pose[:2, 3] - BACK_M * inwards, LOW_M, upright), within_m=0.01)
    rest = _at(hand.pose[:2, 3], HIGH_M, upright)
    while True:
        yield hand.towards(rest, CLOSED)


def _push(
    hand: Hand,
    touch: Float[np.ndarray, "2"],
    along: Float[np.ndarray, "2"],
    length_m: float,
    upright: Float[np.ndarray, "3 3"],
) -> Iterator[Intention]:
    """Go on until the stick has gone `length_m` beyond where it touches; press harder while it stands still."""
    lead_m, before = 0.02, -1.0
    for _ in range(30):
        gone = float((hand.pose[:2, 3] - touch) @ along)
        if gone >= length_m - 0.001:
            return
        lead_m = lead_m + 0.01 if gone - before < 0.0012 else max(lead_m - 0.01, 0.02)
        before = gone
        yield hand.towards(_at(touch + (gone + lead_m) * along, LOW_M, upright), CLOSED, speed=1.0)


def _reach(hand: Hand, target: Float[np.ndarray, "4 4"], within_m: float) -> Iterator[Intention]:
    for _ in range(20):
        if hand.is_at(target, within_m, within_rad=np.pi):
            return
        yield hand.towards(target, CLOSED, speed=1.0)


def _choose(
    tee: Float[np.ndarray, "3"], goal: Float[np.ndarray, "3"], random: np.random.Generator
) -> tuple[int, float]:
    """The push, and its length (m), after which the T is nearest to its goal, at once or after one more push."""
    slid = _slide(tee)
    misses = _miss(slid, goal)
    best = [(int(push), int(misses[push].argmin())) for push in np.argsort(misses.min(axis=1))[:10]]
    others = [(int(push), steps) for push in random.choice(len(slid), 14, replace=False) for steps in (5, 12, 22)]

    def prospect(candidate: tuple[int, int]) -> float:
        after_another = _miss(_slide(slid[candidate]), goal).min()
        return float(min(misses[candidate], after_another + ANOTHER_PUSH_M))

    push, steps = min(best + others, key=prospect)
    return push, (steps + 1) * STEP_M


def _slide(tee: Float[np.ndarray, "3"]) -> Float[np.ndarray, "pushes lengths 3"]:
    """Where the T comes to by each push of each length."""
    places, slid = np.tile(tee, (len(PLACES), 1)), []
    stick = _turned(DIRECTIONS, tee[2])
    for _ in range(STEPS):
        x, y = _turned(PLACES, places[:, 2]).T
        # The force for which the point that is touched moves as the stick does.
        a, b, d = 1 + y * y / TURNING_M2, -x * y / TURNING_M2, 1 + x * x / TURNING_M2
        force_x = (d * stick[:, 0] - b * stick[:, 1]) / (a * d - b * b)
        force_y = (a * stick[:, 1] - b * stick[:, 0]) / (a * d - b * b)
        turn = (x * force_y - y * force_x) / TURNING_M2
        places = places + STEP_M * np.stack([force_x, force_y, turn], axis=1)
        slid.append(places)
    return np.stack(slid, axis=1)


def _miss(tee: Float[np.ndarray, "*places 3"], goal: Float[np.ndarray, "3"]) -> Float[np.ndarray, "*places"]:
    """How far the T is from its goal; m."""
    off = tee - goal
    turn = (off[..., 2] + np.pi) % (2 * np.pi) - np.pi
    return np.sqrt(off[..., 0] ** 2 + off[..., 1] ** 2 + (TURN_WORTH_M * turn) ** 2)


def _place_of(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3"]:
    return np.array([*pose[:2, 3], np.arctan2(pose[1, 0], pose[0, 0])])


def _at(place: Float[np.ndarray, "2"], height_m: float, upright: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = upright, [*place, height_m]
    return pose
