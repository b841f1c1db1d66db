import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.episode import Episode, View, frames_in
from core.spaces import END_EFFECTOR_DELTA, ActionSpace


def make_episode(**changes):
    frames = np.zeros((5, 4, 6, 3), np.uint8)
    parts = {
        "episode_id": "reach/seed=3",
        "task": "reach",
        "instruction": "reach the cube",
        "control_hz": 10.0,
        "views": {
            "front": View(frames=frames, extrinsics=np.zeros((5, 3, 4), np.float32)),
            "side": View(frames=frames),
        },
        "actions": np.zeros((5, 7), np.float32),
        "action_space": END_EFFECTOR_DELTA,
        "proprioception": np.zeros((5, 9), np.float32),
    }
    return Episode(**(parts | changes))


def test_a_consistent_episode_is_valid_and_as_long_as_its_views():
    episode = make_episode()
    episode.validate()
    assert episode.length == 5


SHORT = View(frames=np.zeros((4, 4, 6, 3), np.uint8))
EMPTY = View(frames=np.zeros((0, 4, 6, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"views": {}}, "has no view"),
        ({"views": {"front": SHORT, "side": EMPTY}}, "must be synchronised"),
        ({"views": {"front": EMPTY}}, "not empty"),
        ({"control_hz": 0.0}, "control_hz is 0.0"),
        ({"actions": np.zeros((4, 7), np.float32), "proprioception": None}, "4 actions for 5 frames"),
        ({"actions": None, "proprioception": np.zeros((6, 9), np.float32)}, "6 proprioception for 5 frames"),
        ({"action_space": None}, "need an action_space"),
        ({"actions": np.zeros((5, 6), np.float32)}, "actions of 6 numbers need an action_space of that size"),
    ],
)
def test_an_inconsistent_episode_is_refused_by_name_and_reason(changes, complaint):
    with pytest.raises(ValueError, match="reach/seed=3") as error:
        make_episode(**changes).validate()
    assert complaint in str(error.value)


@given(frames=st.integers(1, 500), control_hz=st.floats(0.5, 240.0))
def test_a_whole_number_of_frames_survives_the_way_over_seconds(frames, control_hz):
    assert frames_in(frames / control_hz, control_hz) == frames


@pytest.mark.parametrize(("seconds", "control_hz"), [(0.04, 10.0), (0.0, 10.0), (-1.0, 10.0), (0.25, 10.0)])
def test_a_time_that_is_no_whole_number_of_frames_is_refused(seconds, control_hz):
    with pytest.raises(ValueError, match=r"choose a multiple of 0\.100 s"):
        frames_in(seconds, control_hz)


def over_steps_by_loop(space, actions, stride):
    rows, adds_up = (
        [],
        [space.kind in ("delta_end_effector", "delta_joint_position") and u != "open" for u in space.units],
    )
    for start in range(0, len(actions), stride):
        window = actions[start : start + stride]
        rows.append([window[:, d].sum() if adds_up[d] else window[-1, d] for d in range(space.dims)])
    return np.array(rows)


@given(
    kind=st.sampled_from(["delta_end_effector", "absolute_end_effector", "joint_position", "delta_joint_position"]),
    units=st.lists(st.sampled_from(["m", "rad", "open"]), min_size=1, max_size=8),
    steps=st.integers(1, 40),
    stride=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_actions_over_strides_equal_a_naive_loop(kind, units, steps, stride, seed):
    names = tuple(f"d{number}" for number in range(len(units)))
    bounds = (1.0,) * len(units)
    space = ActionSpace(names=names, units=tuple(units), kind=kind, low=tuple(-b for b in bounds), high=bounds)
    actions = np.random.default_rng(seed).integers(-9, 10, (steps, len(units))).astype(np.float64)
    np.testing.assert_array_equal(space.over_steps(actions, stride), over_steps_by_loop(space, actions, stride))


def test_a_gripper_command_never_adds_up():
    closed = np.tile(np.array([0.01, 0, 0, 0, 0, 0, -1.0], np.float32), (4, 1))
    np.testing.assert_allclose(END_EFFECTOR_DELTA.over_steps(closed, 4), [[0.04, 0, 0, 0, 0, 0, -1.0]], rtol=1e-6)


def test_an_action_space_with_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="one entry a dimension"):
        ActionSpace(names=("x", "y"), units=("m",), kind="joint_position", low=(0.0, 0.0), high=(1.0, 1.0))
