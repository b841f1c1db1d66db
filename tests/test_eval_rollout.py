"""One episode in closed loop, on a line: the point starts at the seed's place and must stand at the told end."""

from dataclasses import replace

import numpy as np
import pytest

from core.policy import ActionChunk, Observation
from core.spaces import ActionSpace
from eval.baselines import RandomPolicy
from eval.benchmark import StepResult
from eval.execution import Execution, ExecutionError, Executor
from eval.rollout import RolloutError, another_instruction, rollout
from eval.scenes import SeparateSimulators

SPACE = ActionSpace(names=("x",), units=("m",), kind="delta_end_effector", low=(-1.0,), high=(1.0,))
HAND = ActionSpace(
    names=("x", "gripper"), units=("m", "open"), kind="delta_end_effector", low=(-1.0, -1.0), high=(1.0, 1.0)
)
FACTS = {
    "simulator": "none",
    "shader": "none",
    "robot": "a point",
    "robot_meshes": "none",
    "assets": "none",
    "termination": "step limit",
    "image_size": 4,
}


class Line:
    """A point on a line, told to go left (even seeds) or right (odd seeds) to beyond 2.5."""

    task = "Line"
    action_space = SPACE
    control_hz = 10.0
    max_steps = 10
    facts = FACTS

    def __init__(self, instructions=("left", "right")):
        self.instructions, self.observed = instructions, 0

    def reset(self, seed):
        self.x, self.steps, self.taken, self.observed = 0.0, 0, [], 0
        self.told = self.instructions[seed % len(self.instructions)]
        return self.told

    def initial_state(self):
        return {"walker": [self.x, 0.0, 0.0]}

    def observe(self):
        self.observed += 1
        image = np.full((4, 4, 3), self.steps, np.uint8)
        return Observation(images={"front": image}, proprioception=np.array([self.x]))

    def step(self, action):
        self.x += action[0]
        self.steps += 1
        self.taken.append(action[0])
        goal = -2.5 if self.told == "left" else 2.5
        return StepResult(success=self.x / goal >= 1, is_over=self.steps >= self.max_steps)


class Walker:
    """Goes where it is told in chunks of four, `actions` of which can be replaced."""

    fingerprint, cameras = "walker", ("front",)

    def __init__(self, space=SPACE, actions=None):
        self.action_space, self.actions = space, actions

    def reset(self, instruction, seed):
        self.direction = -1.0 if instruction == "left" else 1.0

    def act(self, observation):
        actions = np.full((4, 1), self.direction) if self.actions is None else np.array(self.actions)
        return ActionChunk(actions=actions, action_space=self.action_space)


def take(steps, **more):
    return Execution(execute_steps=steps, **more)


def test_a_policy_that_does_as_told_succeeds_at_the_end():
    outcome = rollout(Line(), Walker(), 1, take(2))
    assert outcome[:6] == ("right", True, True, 10, 0, 4)
    assert outcome.first_success_step is not None
    assert outcome.initial_state == {"walker": [0.0, 0.0, 0.0]}


def test_it_goes_on_after_the_first_success():
    back_and_forth = [[1.0], [1.0], [1.0], [-1.0]]
    line = Line()
    line.max_steps = 4
    outcome = rollout(line, Walker(actions=back_and_forth), 1, take(4))
    assert outcome.success_at_any_time
    assert not outcome.success_at_end
    assert outcome.steps == 4
    assert outcome.first_success_step == 3


def test_only_the_first_actions_of_a_chunk_are_taken():
    line = Line()
    rollout(line, Walker(actions=[[0.1], [0.2], [0.3], [0.4]]), 0, take(3))
    assert line.taken == pytest.approx([0.1, 0.2, 0.3] * 3 + [0.1])


def test_it_renders_at_policy_calls_only():
    line = Line()
    rollout(line, Walker(), 0, take(4))
    assert line.observed == 3


def test_a_recording_has_every_instant_once_in_order():
    seen = []
    rollout(Line(), Walker(), 0, take(4), on_frame=lambda frame: seen.append(int(frame.images["front"][0, 0, 0])))
    assert seen == list(range(11))


def test_recording_changes_nothing():
    quiet, recorded = Line(), Line()
    policy = RandomPolicy(SPACE)
    outcomes = [rollout(quiet, policy, 5, take(3)), rollout(recorded, policy, 5, take(3), on_frame=lambda _: None)]
    assert outcomes[0] == outcomes[1]
    assert quiet.taken == recorded.taken


def test_a_wrong_instruction_is_told_but_the_true_one_is_judged():
    outcome = rollout(Line(), Walker(), 1, take(4), instruction="left")
    assert outcome[:7] == ("left", False, False, 10, 0, 4, None)


def test_actions_are_clipped_to_the_robot_and_counted():
    line = Line()
    outcome = rollout(line, Walker(actions=[[0.5], [3.0]]), 1, take(2))
    assert line.taken == [0.5, 1.0] * 5
    assert outcome.clipped_steps == 5


@pytest.mark.parametrize(
    ("stop_beyond", "last_taken"), [(5.0, 5.0), (1.0, 1.0)], ids=["far out of range", "out of range at all"]
)
def test_an_action_too_far_out_stops_the_episode_and_never_reaches_the_robot(stop_beyond, last_taken):
    line = Line()
    actions = [[0.5], [last_taken], [last_taken + 0.01], [0.5]]
    with pytest.raises(ExecutionError, match=r"step 2: the action's x is .* times its range of -1 to 1"):
        rollout(line, Walker(actions=actions), 1, take(4, stop_beyond=stop_beyond))
    assert line.taken == [0.5, 1.0]


def test_what_lies_out_of_range_behind_the_actions_taken_stops_nothing():
    line = Line()
    rollout(line, Walker(actions=[[0.5], [100.0]]), 1, take(1))
    assert line.taken == [0.5] * 10


def given(execution, space, *chunks):
    executor = Executor(execution, space)
    return np.concatenate([list(executor.actions(np.array(chunk, dtype=float))) for chunk in chunks])


def test_chunks_that_overlap_are_blended_with_the_newest_weighing_most():
    chunks = [[[0.0], [0.0], [0.0]], [[0.4], [0.4], [0.4]], [[0.9], [0.9], [0.9]], [[-0.5], [-0.5], [-0.5]]]
    w = np.exp(-0.1 * np.arange(3))
    second = (w[0] * 0.4) / w[:2].sum()
    third = (w[0] * 0.9 + w[1] * 0.4) / w.sum()
    fourth = (w[0] * -0.5 + w[1] * 0.9 + w[2] * 0.4) / w.sum()
    blended = given(take(1, ensemble_decay=0.1), SPACE, *chunks)
    assert blended[:, 0] == pytest.approx([0.0, second, third, fourth])
    assert given(take(1), SPACE, *chunks)[:, 0] == pytest.approx([0.0, 0.4, 0.9, -0.5])


def test_blending_knows_which_step_a_chunk_speaks_of():
    chunks = [[[0.1], [0.2], [0.3], [0.4]], [[0.3], [0.4], [0.5], [0.6]], [[0.5], [0.6], [0.7], [0.8]]]
    blended = given(take(2, ensemble_decay=0.5), SPACE, *chunks)
    assert blended[:, 0] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_a_blend_forgets_the_episode_before():
    execution = take(1, ensemble_decay=0.0)
    line = Line()
    policy = Walker()
    rollout(line, policy, 0, execution)
    rollout(line, policy, 1, execution)
    assert line.taken == [1.0] * 10


def test_a_sticky_gripper_keeps_for_a_while_to_what_it_was_told():
    commands = [1, -1, 1, 1, 1, 1, -1, 1]
    chunk = [[0.1 * index, command] for index, command in enumerate(commands)]
    actions = given(take(8, sticky_gripper_steps=3), HAND, chunk)
    assert actions[:, 1].tolist() == [1, -1, -1, -1, 1, 1, 1, 1]
    assert actions[:, 0] == pytest.approx([0.1 * index for index in range(8)])


def test_movements_are_scaled_and_the_gripper_is_not():
    assert given(take(2, action_scale=0.5), HAND, [[0.8, 1.0], [-0.4, -1.0]]).tolist() == [[0.4, 1.0], [-0.2, -1.0]]


def test_what_an_action_space_has_not_cannot_be_scaled_or_held():
    with pytest.raises(ExecutionError, match=r"action_scale = 2 .* absolute_end_effector"):
        Executor(take(1, action_scale=2), SPACE.model_copy(update={"kind": "absolute_end_effector"}))
    with pytest.raises(ExecutionError, match="sticky_gripper_steps = 5, but no dimension"):
        Executor(take(1, sticky_gripper_steps=5), SPACE)
    with pytest.raises(ExecutionError, match="names no range"):
        Executor(take(1), SPACE.model_copy(update={"low": None, "high": None}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_is_refused_before_any_is_taken(bad):
    line = Line()
    with pytest.raises(RolloutError, match="for x of action 1"):
        rollout(line, Walker(actions=[[0.1], [bad]]), 0, take(1))
    assert line.taken == []


@pytest.mark.parametrize("actions", [np.zeros((4, 2)), np.zeros((0, 1))])
def test_a_chunk_of_wrong_shape_is_refused(actions):
    with pytest.raises(RolloutError, match="wanted \\(horizon, 1\\)"):
        rollout(Line(), Walker(actions=actions), 0, take(1))


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("y",)},
        {"units": ("rad",)},
        {"kind": "absolute_end_effector"},
        {"frame": "camera"},
        {"rotation": "euler_xyz"},
    ],
)
def test_a_policy_whose_actions_mean_something_else_is_refused(change):
    other = SPACE.model_copy(update=change)
    with pytest.raises(RolloutError, match=next(iter(change))):
        rollout(Line(), Walker(other), 0, take(1))


def test_a_chunk_that_means_something_else_than_its_policy_is_refused():
    class Turncoat(Walker):
        def act(self, observation):
            return replace(super().act(observation), action_space=SPACE.model_copy(update={"units": ("rad",)}))

    with pytest.raises(RolloutError, match="units"):
        rollout(Line(), Turncoat(), 0, take(1))


def test_a_policy_of_a_robot_with_other_limits_is_welcome():
    wider = SPACE.model_copy(update={"low": (-5.0,), "high": (5.0,)})
    assert rollout(Line(), Walker(wider), 0, take(4)).success_at_end


def test_a_missing_camera_is_named():
    policy = Walker()
    policy.cameras = ("front", "wrist")
    with pytest.raises(RolloutError, match="wrist"):
        rollout(Line(), policy, 0, take(1))


def test_another_instruction_is_wrong_known_to_the_task_and_the_same_for_a_seed():
    told = ("left", "right", "up", "down")
    scenes = SeparateSimulators([Line(told), Line(told)])
    for seed in range(8):
        other = another_instruction(scenes, seed)
        assert other in told
        assert other != told[seed % 4]
        assert other == another_instruction(scenes, seed)
    assert len({another_instruction(scenes, 4 * seed) for seed in range(20)}) == 3


def test_a_task_with_one_instruction_cannot_be_shuffled():
    with pytest.raises(RolloutError, match="shuffle_instructions"):
        another_instruction(SeparateSimulators([Line(("left",))]), 0)


def test_random_actions_fill_the_scaled_range_and_follow_the_seed():
    space = SPACE.model_copy(update={"low": (-1.0,), "high": (3.0,)})
    policy = RandomPolicy(space, scale=0.5)
    nothing = Observation(images={})

    def draw(seed):
        policy.reset("", seed)
        return np.concatenate([policy.act(nothing).actions for _ in range(200)])

    actions = draw(0)
    assert -0.5 <= actions.min() < -0.48
    assert 1.48 < actions.max() <= 1.5
    assert np.array_equal(draw(0), actions)
    assert not np.array_equal(draw(1), actions)
