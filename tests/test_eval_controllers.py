"""What a robot's controller is said to do is what the simulator does."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core.spaces import END_EFFECTOR_DELTA
from eval.maniskill import ManiSkillBenchmark

pytestmark = pytest.mark.sim
MIXED_TURN = np.array([0.05, -0.06, 0.04])


@pytest.fixture
def make():
    made = []

    def benchmark(task="PushCube-v1", **options):
        made.append(ManiSkillBenchmark(task, (), **options))
        made[-1].reset(3)
        return made[-1]

    yield benchmark
    for each in made:
        each.close()


def arm(benchmark):
    return benchmark._environment.agent.controller.controllers["arm"]


def pose(of):
    numbers = of.raw_pose[0].numpy()
    return numbers[:3], Rotation.from_quat(np.roll(numbers[3:], -1))


def test_the_default_is_the_space_of_the_projects_own_episodes(make):
    benchmark = make()
    assert benchmark.action_space == END_EFFECTOR_DELTA
    assert benchmark.facts["controller"] == "pd_ee_delta_pose"


def test_increments_of_the_hand_are_metres_and_a_rotation_vector_in_the_bases_frame(make):
    benchmark = make()
    place, turned = pose(arm(benchmark).ee_pose_at_base)
    benchmark.step(np.array([0.03, -0.02, 0.01, *MIXED_TURN, 1.0]))
    target_place, target_turned = pose(arm(benchmark)._target_pose)
    np.testing.assert_allclose(target_place - place, [0.03, -0.02, 0.01], atol=1e-6)
    np.testing.assert_allclose((target_turned * turned.inv()).as_rotvec(), MIXED_TURN, atol=1e-5)


def test_absolute_poses_of_the_hand_are_reached(make):
    benchmark = make(controller="pd_ee_pose")
    assert benchmark.action_space.kind == "absolute_end_effector"
    place, turned = pose(arm(benchmark).ee_pose_at_base)
    wanted = np.concatenate(
        [place + np.array([0.03, 0.02, -0.02]), (Rotation.from_rotvec(MIXED_TURN) * turned).as_rotvec(), [1.0]]
    )
    for _ in range(12):
        benchmark.step(wanted)
    place, turned = pose(arm(benchmark).ee_pose_at_base)
    np.testing.assert_allclose(place, wanted[:3], atol=0.005)
    assert (turned * Rotation.from_rotvec(wanted[3:6]).inv()).magnitude() < 0.02


def test_a_hand_that_keeps_its_orientation_has_three_increments(make):
    benchmark = make(controller="pd_ee_delta_pos")
    assert benchmark.action_space.names == ("x", "y", "z", "gripper")
    place, _ = pose(arm(benchmark).ee_pose_at_base)
    benchmark.step(np.array([0.0, 0.04, 0.02, 1.0]))
    np.testing.assert_allclose(pose(arm(benchmark)._target_pose)[0] - place, [0.0, 0.04, 0.02], atol=1e-6)


@pytest.mark.parametrize("controller", ["pd_joint_delta_pos", "pd_joint_target_delta_pos"])
def test_increments_of_joints_are_radians(make, controller):
    benchmark = make(controller=controller)
    assert (benchmark.action_space.kind, benchmark.action_space.units[0]) == ("delta_joint_position", "rad")
    before = arm(benchmark).qpos[0].numpy().copy()
    step = np.linspace(-0.09, 0.09, 7)
    benchmark.step(np.append(step, 1.0))
    np.testing.assert_allclose(arm(benchmark)._target_qpos[0] - before, step, atol=1e-6)


def test_positions_of_joints_are_reached_and_stay_within_their_limits(make):
    benchmark = make(controller="pd_joint_pos")
    joints = arm(benchmark).qpos[0].numpy() + 0.05
    for _ in range(12):
        benchmark.step(np.append(joints, -1.0))
    np.testing.assert_allclose(arm(benchmark).qpos[0], joints, atol=0.01)
    benchmark.step(np.append(np.full(7, 9.0), 1.0))
    np.testing.assert_allclose(arm(benchmark)._target_qpos[0], benchmark.action_space.high[:7], atol=1e-5)


def test_velocities_of_joints_are_radians_a_second(make):
    benchmark = make(controller="pd_joint_vel")
    assert (benchmark.action_space.kind, benchmark.action_space.units[0]) == ("joint_velocity", "rad/s")
    speeds = np.array([0.3, 0, 0, 0, 0, 0, -0.5])
    for _ in range(10):
        benchmark.step(np.append(speeds, 1.0))
    np.testing.assert_allclose(arm(benchmark).qvel[0], speeds, atol=0.05)


def test_a_stick_has_no_gripper_and_joints_without_end_are_limited_to_a_whole_turn(make):
    assert make("PushT-v1").action_space.names == ("x", "y", "z", "rx", "ry", "rz")
    fetch = make("PickCube-v1", robot="fetch", controller="pd_joint_pos").action_space
    assert np.isfinite(fetch.low).all()
    assert fetch.high[fetch.names.index("wrist_roll_joint")] == pytest.approx(2 * np.pi)


def test_what_moves_by_other_numbers_than_the_arm_is_held_still_and_said(make):
    benchmark = make("PickCube-v1", robot="fetch")
    assert benchmark.action_space == END_EFFECTOR_DELTA
    assert benchmark.facts["held_still"] == ["body", "base"]
    robot = benchmark._environment.agent.robot
    base, place = robot.get_qpos()[0, :3].numpy().copy(), benchmark.proprioception()[:3]
    for _ in range(5):
        benchmark.step(np.array([-0.05, 0, 0, 0, 0, 0, 1.0]))
    np.testing.assert_allclose(robot.get_qpos()[0, :3], base, atol=0.01)
    assert (benchmark.proprioception()[:3] - place)[0] < -0.04


def test_controllers_that_cannot_be_described_or_are_not_there_are_refused_with_those_offered():
    with pytest.raises(
        ValueError, match=r"'pd_joint_pos_vel' of panda cannot be used: .*it also offers pd_joint_delta"
    ):
        ManiSkillBenchmark("PushCube-v1", (), controller="pd_joint_pos_vel")
    with pytest.raises(ValueError, match=r"controller: pd_ee_pos not in supported modes: \['pd_joint_delta_pos'"):
        ManiSkillBenchmark("PushCube-v1", (), controller="pd_ee_pos")
