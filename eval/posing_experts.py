"""Scripted experts of tasks in which the hand must turn or tilt: insert, stand upright, roll.

Each decides from the present poses alone, so that what slips in the fingers is put right.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from eval.expert_hand import CLOSED, FINGERS_DOWN, OPEN, Hand, Intention, limited, placed, raised, shifted, turn_between

CHARGER_HALF_LENGTH_M = 0.02
HAND_TILT = Rotation.from_euler("y", 15, degrees=True)
"""The hand leans back from the receptacle."""
CHARGER_PINS_M = 0.016
BEFORE_M = 0.025
"""Between the hole and the tip of what is held, where it is aligned."""
INSIDE_M = 0.005
"""How deep something must be in its hole to be led by it."""
NEAR_M, LEARNT = 0.01, 0.2
"""Below which distance aside the weight of what is held is learnt, and which part of the distance at a step."""
PEG_END_M = 0.1
"""Where a peg of half length 0.12 m is held to be stood upright, from its middle."""
UPRIGHT_M = 0.12
"""Height of the middle of that peg when it stands."""
LOOSE = -0.1
"""Grip of fingers in which a peg turns by its own weight."""
LIFTED_M = 0.28
BALL_RADIUS_M = 0.035
LAUNCH_M = np.array([-0.1, 0.66, BALL_RADIUS_M + 0.01])
"""Where a roll begins: well within reach, the ball off the table, on which it would turn between the fingers."""
RUN_M = 0.22
"""How far the hand takes the ball along before it lets go."""
ROLL_LAG_S = 0.15
"""Commanded step for each m/s at which the ball shall roll, which loses 2/7 of its speed as it begins to do so."""
HAND_LAG_S = 0.125
"""Commanded step for each m/s of the hand, measured."""


def plug_in(hand: Hand) -> Iterator[Intention]:
    """Plug the charger into the receptacle."""
    middle = hand.thing("charger") @ shifted(-CHARGER_HALF_LENGTH_M)
    yield from hand.grasp(middle @ placed(np.zeros(3), FINGERS_DOWN * HAND_TILT))
    yield from _insert(hand, "charger", depth_m=CHARGER_PINS_M, step_m=0.01, within_m=0.0006, within_rad=0.015)


def insert_peg(hand: Hand) -> Iterator[Intention]:
    """Put the head of the peg into the hole, held near its tail."""
    half_length = (np.linalg.inv(hand.thing("goal_pose")) @ hand.thing("box_hole_pose"))[0, 3]
    tail = hand.thing("peg") @ shifted(-max(0.05, half_length / 2 + 0.01))
    ways = [tail @ placed(np.zeros(3), FINGERS_DOWN * Rotation.from_euler("z", angle)) for angle in (0.0, np.pi)]
    yield from hand.grasp(min(ways, key=lambda way: float(np.linalg.norm(turn_between(hand.pose, way)))))
    yield from _insert(hand, "peg", depth_m=half_length, step_m=0.03, within_m=0.003, within_rad=0.03)


def stand_upright(hand: Hand) -> Iterator[Intention]:
    """Lift the peg by one end so loosely that it hangs down, grip it, and set it on the table.

    Held firmly, it would have to be turned by 90 degrees; the wrist's limit stops at about 67.
    """
    end = placed(hand.thing("peg")[:3, 3] - np.array([PEG_END_M, 0.0, 0.0]), FINGERS_DOWN)
    yield from hand.grasp(end, grip=LOOSE)
    while hand.pose[2, 3] < LIFTED_M - 0.03 or _lean(hand.thing("peg")) > 0.35:
        yield hand.towards(raised(end, LIFTED_M - end[2, 3]), LOOSE)
    while True:
        peg = hand.thing("peg")
        height = UPRIGHT_M if _lean(peg) < 0.05 else max(peg[2, 3], UPRIGHT_M + 0.03)
        upright = placed(np.array([*peg[:2, 3], height]), Rotation.from_matrix(_uprighting(peg) @ peg[:3, :3]))
        yield hand.towards(hand.holding("peg", upright), CLOSED, speed=0.5)


def roll_ball(hand: Hand) -> Iterator[Intention]:
    """Let the ball go so fast that it is at the goal when the episode ends: nothing stops it there."""
    goal = hand.thing("goal_region")[:3, 3]
    way = goal - LAUNCH_M
    turn = Rotation.from_euler("z", np.arctan2(way[1], way[0])) * FINGERS_DOWN
    yield from hand.grasp(placed(hand.thing("ball")[:3, 3], turn))
    launch = placed(LAUNCH_M, turn)
    while not hand.is_at(launch, within_m=0.03, within_rad=0.1):
        yield hand.towards(launch, CLOSED, speed=1.0)
    step = np.zeros(3)
    while np.linalg.norm(hand.pose[:2, 3] - LAUNCH_M[:2]) < RUN_M:
        ball = hand.thing("ball")[:3, 3]
        step[:2] = ROLL_LAG_S * (goal - ball)[:2] / (hand.steps_left / hand.control_hz)
        step[2] = LAUNCH_M[2] - ball[2]
        yield hand.move(step, launch, CLOSED)
    yield from _let_roll(hand, launch, step)


def _let_roll(hand: Hand, oriented_as: Float[np.ndarray, "4 4"], step: Float[np.ndarray, "3"]) -> Iterator[Intention]:
    """Open the fingers and rise between them and the ball's way: a hand that stops would be hit by the ball."""
    for age in range(14):
        before = hand.thing("ball")[:3, 3]
        yield hand.move(step, oriented_as, OPEN)
        ball = hand.thing("ball")[:3, 3]
        step = HAND_LAG_S * hand.control_hz * (ball - before) + 0.5 * (ball - hand.pose[:3, 3])
        step[2] = 0.1 if age >= 2 and hand.pose[2, 3] < 0.2 else 0.0
    rest = hand.pose
    while True:
        yield hand.towards(rest, OPEN)


def _insert(
    hand: Hand, thing: str, depth_m: float, step_m: float, within_m: float, within_rad: float
) -> Iterator[Intention]:
    """Bring what is held before a hole and push it in along its x axis, which must be aligned until it is inside."""
    while hand.pose[2, 3] < 0.07:
        yield hand.towards(raised(hand.pose, 0.1), CLOSED, speed=0.5)
    goal, lift = hand.thing("goal_pose"), np.zeros(3)
    while True:
        held = np.linalg.inv(goal) @ hand.thing(thing)
        aside_m = float(np.linalg.norm(held[1:3, 3]))
        is_aligned = aside_m < within_m and Rotation.from_matrix(held[:3, :3]).magnitude() < within_rad
        is_led = is_aligned or held[0, 3] > INSIDE_M - depth_m
        x_m = min(held[0, 3] + step_m, 0.0) if is_led else np.clip(held[0, 3], -depth_m - BEFORE_M, 0.0)
        if aside_m < NEAR_M:
            lift -= LEARNT * goal[:3, 1:3] @ held[1:3, 3]
        target = hand.holding(thing, goal @ shifted(x_m))
        target[:3, 3] += lift
        yield hand.towards(target, CLOSED, speed=0.4)


def _lean(peg: Float[np.ndarray, "4 4"]) -> float:
    """Angle between the peg and the vertical; rad."""
    return float(np.arccos(min(1.0, abs(peg[2, 0]))))


def _uprighting(peg: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 3"]:
    """The shortest turn that makes the peg vertical, nearly so if it leans far."""
    axis = peg[:3, 0] * np.sign(peg[2, 0])
    return Rotation.from_rotvec(limited(np.cross(axis, [0.0, 0.0, 1.0]), 0.4)).as_matrix()
