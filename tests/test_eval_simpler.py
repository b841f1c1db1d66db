import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core.config import load_config
from core.formats.mapping import Mapping
from core.policy import ActionChunk
from core.spaces import END_EFFECTOR_DELTA
from eval.execution import Execution
from eval.protocol import Protocol, ProtocolError, protocol_of
from eval.results import Result, append_result, read_results
from eval.rollout import RolloutError, require_same_meaning, rollout
from eval.simpler import BRIDGE_ACTIONS, CAMERA, EPISODES, FINGERS_DOWN, TASKS, SimplerBenchmark, rotation_of
from eval.simpler_assets import NEEDED, OFFICIAL, STAND_INS, AssetsError, require_assets
from eval.simpler_experts import SimplerExpertPolicy
from eval.simpler_table import PUBLISHED, table_of, write_table

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT.parent / "shared/assets/simpler_bridge"
STACK, CARROT, SPOON, EGGPLANT = TASKS
needs_assets = [
    pytest.mark.sim,
    pytest.mark.skipif(not ASSETS.is_dir(), reason="SIMPLER's files are not in ../shared/assets/simpler_bridge"),
]
if ASSETS.is_dir():  # mani-skill reads it once, when it is first imported, perhaps by the tests of another file
    os.environ["MS_ASSET_DIR"] = str(ASSETS)


@pytest.fixture(scope="module")
def made():
    """Benchmarks by task, in one process as in a worker."""
    benchmarks = {}

    def make(task, **options):
        key = (task, json.dumps(options, sort_keys=True))
        if key not in benchmarks:
            benchmarks[key] = SimplerBenchmark(task, image_size=64, **options)
        return benchmarks[key]

    yield make
    for benchmark in benchmarks.values():
        benchmark.close()


def still(**changes):
    action = np.zeros(7)
    action[6] = 1.0
    for name, value in changes.items():
        action[BRIDGE_ACTIONS.names.index(name)] = value
    return action


class Scripted:
    """A policy with BridgeData's action space that always answers the same."""

    fingerprint = "scripted"
    cameras = (CAMERA,)
    control_hz = 5.0

    def __init__(self, action_space, action):
        self.action_space = action_space
        self.action = np.array(action, float)

    def reset(self, instruction, seed):
        self.told = instruction

    def act(self, observation):
        assert observation.images[CAMERA].shape == (64, 64, 3)
        return ActionChunk(actions=np.tile(self.action, (8, 1)), action_space=self.action_space)


def test_a_policy_trained_on_bridge_data_speaks_the_benchmarks_actions_and_one_for_the_panda_does_not():
    bridge = load_config(Mapping, ROOT / "configs/data/bridge.yaml")
    require_same_meaning(bridge.action_space, BRIDGE_ACTIONS)
    assert bridge.control_hz == 5
    with pytest.raises(RolloutError, match="names"):
        require_same_meaning(END_EFFECTOR_DELTA, BRIDGE_ACTIONS)


@pytest.fixture
def own_assets(tmp_path, monkeypatch):
    """A folder with a file of no content wherever one is needed."""
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    for files in NEEDED.values():
        for file in files:
            (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / file).write_bytes(b"")
    return tmp_path / "data"


def test_complete_files_that_are_no_known_stand_ins_are_official(own_assets):
    assert require_assets() == OFFICIAL


def test_absent_files_are_named_with_the_command_that_gets_them_and_only_that(own_assets):
    (own_assets / NEEDED["bridge_v2_real2sim"][0]).unlink()
    with pytest.raises(AssetsError, match="lacks 1 of") as caught:
        require_assets()
    assert "python -m mani_skill.utils.download_asset bridge_v2_real2sim" in str(caught.value)
    assert "widowx250s" not in str(caught.value)
    shutil.rmtree(own_assets)
    with pytest.raises(AssetsError, match=r"download_asset widowx250s && .*download_asset bridge_v2_real2sim"):
        require_assets()


def test_the_script_starts_nothing_without_the_files(tmp_path):
    environment = os.environ | {"MS_ASSET_DIR": str(tmp_path)}
    command = [sys.executable, "scripts/simpler_table.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "python -m mani_skill.utils.download_asset widowx250s" in done.stderr


@pytest.mark.skipif(not ASSETS.is_dir(), reason="SIMPLER's files are not in ../shared/assets/simpler_bridge")
def test_each_stand_in_is_recognised_by_its_content(own_assets):
    for file in STAND_INS:
        (own_assets / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ASSETS / "data" / file, own_assets / file)
    said = require_assets()
    assert said == "not official assets (stand-ins: bridge_table_1_v1.glb, bridge_table_1_v2.glb, eggplant)"


def test_a_misspelt_task_or_camera_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"unknown task 'PutCarrot'.*PutCarrotOnPlateInScene-v1"):
        SimplerBenchmark("PutCarrot")
    with pytest.raises(ValueError, match=r"has the camera image_0, not \['front'\]"):
        SimplerBenchmark(CARROT, cameras=("front",))


def result(task, seed, any_time=False, end=False, arm="policy", assets="official", **more):
    shared = {"assets": assets, "step_limit": 60}
    return Result(
        arm=arm,
        task=task,
        seed=seed,
        instruction="put carrot on plate",
        success_at_end=end,
        success_at_any_time=any_time,
        steps=60,
        seconds=1.0,
        policy_fingerprint="abc",
        protocol=Protocol(benchmark=shared, policy={}),
        **more,
    )


def test_the_table_shows_successes_with_intervals_beside_published_rows():
    results = [result(task, seed, any_time=seed < 8, end=seed < 4) for task in TASKS for seed in range(EPISODES)]
    lines = table_of(results).splitlines()
    assert lines[0] == "| | stack | carrot | spoon | eggplant | all |"
    assert lines[2] == "| policy, at any time " + "| 8/24 33.3 % (18 to 53) " * 4 + "| 32/96 33.3 % (25 to 43) |"
    assert lines[3].startswith("| policy, at the end | 4/24 16.7 %")
    published = next(line for line in lines if line.startswith("| MVP-LAM, published"))
    assert "| 8/24 33.3 % (18 to 53) | 16/24 66.7 %" in published
    assert "| 18/24 75.0 %" in published
    assert "58/96 60.4 %" in published
    assert "not official" not in "\n".join(lines)


def test_published_percentages_are_whole_numbers_of_24_episodes():
    for percents in PUBLISHED.values():
        assert all(abs(100 * round(EPISODES * percent / 100) / EPISODES - percent) < 0.08 for percent in percents)


def test_the_table_says_what_is_missing_what_failed_and_that_assets_are_not_official(tmp_path):
    found = result(CARROT, 0, any_time=True, assets="not official assets (stand-ins: eggplant)", error="it broke")
    append_result(tmp_path / "results.jsonl", found)
    table = write_table(tmp_path)
    assert table == (tmp_path / "simpler.md").read_text()
    assert "These scores are not official scores: not official assets (stand-ins: eggplant)." in table
    assert "policy: 95 of 96 episodes were not run." in table
    assert "policy: 1 episodes ended with an error and count as failures." in table
    assert table.splitlines()[2].startswith("| policy, at any time | not run | 1/1 100.0 %")


def test_the_table_refuses_results_of_different_conditions():
    official, other = result(CARROT, 0), result(CARROT, 1)
    other = replace(other, protocol=Protocol(benchmark={"assets": "official", "step_limit": 80}, policy={}))
    with pytest.raises(ProtocolError, match="step_limit"):
        table_of([official, other])


@pytest.mark.parametrize("words", [["--help"], ["--wrong"], [], ["nowhere"]])
def test_the_shell_script_explains_itself_and_refuses_what_it_does_not_know(words):
    command = ["bash", "scripts/eval_simpler.sh", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if words == ["--help"] else 2)
    assert ("CHECKPOINT" if words == ["--help"] else "eval_simpler.sh: ") in done.stdout + done.stderr


class TestInTheSimulator:
    pytestmark = needs_assets

    def test_facts_say_what_a_score_depends_on(self, made):
        benchmark = made(CARROT)
        protocol = protocol_of(benchmark, Scripted(BRIDGE_ACTIONS, still()), Execution(), shuffled_instruction=False)
        assert protocol.benchmark["assets"].startswith("not official assets")
        assert protocol.benchmark["controller"] == "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"
        assert "image_0, 640 x 480" in protocol.benchmark["camera"]
        assert (protocol.benchmark["step_limit"], protocol.benchmark["control_hz"]) == (60, 5.0)
        json.dumps(protocol.benchmark)

    def test_official_step_limits_and_instructions(self, made):
        limits = {task: (made(task).max_steps, made(task).reset(0)) for task in TASKS}
        assert limits == {
            STACK: (60, "stack the green block on the yellow block"),
            CARROT: (60, "put carrot on plate"),
            SPOON: (60, "put the spoon on the towel"),
            EGGPLANT: (120, "put eggplant into yellow basket"),
        }

    def test_a_seed_is_an_episode_of_its_own_whatever_was_run_before(self, made):
        first, same, other, again = (carried(made(CARROT), seed) for seed in (5, 5, 0, 5))
        assert np.array_equal(first, same)
        assert np.array_equal(first, again)
        assert np.abs(first - other).max() > 0.05

    @pytest.mark.parametrize("seed", [-1, 24, 10_000_000])
    def test_there_are_twenty_four_episodes_and_no_more(self, made, seed):
        with pytest.raises(ValueError, match="24 fixed ones, 0 to 23"):
            made(CARROT).reset(seed)

    def test_increments_move_the_hand_along_the_bases_axes_and_turn_it_as_bridge_data_means_it(self, made):
        benchmark = made(CARROT)
        benchmark.reset(0)
        before = benchmark.hand_pose()
        angles = (0.15, -0.2, 0.3)
        benchmark.step(still(x=0.02, y=-0.03, z=0.04, roll=angles[0], pitch=angles[1], yaw=angles[2]))
        for _ in range(6):
            benchmark.step(still())
        after = benchmark.hand_pose()
        assert np.allclose(after[:3] - before[:3], (0.02, -0.03, 0.04), atol=0.004)
        roll, pitch, yaw = (Rotation.from_rotvec(np.eye(3)[axis] * angles[axis]) for axis in range(3))
        turned = rotation_of(after) * rotation_of(before).inv()
        assert (turned * (yaw * pitch * roll).inv()).magnitude() < 0.02
        assert (turned * (roll * pitch * yaw).inv()).magnitude() > 0.04

    def test_proprioception_is_bridge_datas_state(self, made):
        benchmark = made(CARROT)
        benchmark.reset(0)
        benchmark.step(still())
        opened = benchmark.proprioception()
        assert np.allclose(opened[:3], (0.29, 0.0, 0.135), atol=0.02)
        assert np.abs(opened[3:6]).max() < 0.15
        assert opened[6] == pytest.approx(1.0, abs=0.05)
        hand = rotation_of(benchmark.hand_pose())
        assert (Rotation.from_euler("xyz", opened[3:6]) * FINGERS_DOWN * hand.inv()).magnitude() < 1e-3
        for _ in range(3):
            benchmark.step(still(gripper=-0.1))
        assert benchmark.proprioception()[6] < 0.05

    def test_each_task_in_a_process_has_its_own_photograph_behind_its_own_things(self, made):
        pictures = {}
        for task in (CARROT, EGGPLANT, CARROT):
            made(task).reset(0)
            pictures.setdefault(task, []).append(made(task).picture().astype(int))
        first, second = pictures[CARROT]
        assert first.shape == (480, 640, 3)
        assert np.abs(first - second).mean() < 1
        for task, photograph in ((CARROT, "bridge_real_eval_1.png"), (EGGPLANT, "bridge_sink.png")):
            assert share_of_photograph(pictures[task][0], photograph) > 0.75
        orange = (first[..., 0] > 200) & (first[..., 1] > 60) & (first[..., 1] < 140) & (first[..., 2] < 60)
        assert orange.sum() > 200

    def test_added_cameras_are_seen_too(self, made):
        pose = {"eye": (-0.6, 0.4, 1.3), "target": (-0.16, 0.0, 0.9), "fov_rad": 0.8}
        benchmark = made(CARROT, cameras=(CAMERA, "side"), added_cameras={"side": pose})
        benchmark.reset(0)
        images = benchmark.observe().images
        assert {name: image.shape for name, image in images.items()} == dict.fromkeys((CAMERA, "side"), (64, 64, 3))
        assert images["side"].std() > 10
        assert "side" in benchmark.facts["added_cameras"]

    def test_a_bridge_policy_runs_to_the_step_limit_and_doing_nothing_solves_nothing(self, made):
        policy = Scripted(load_config(Mapping, ROOT / "configs/data/bridge.yaml").action_space, still())
        outcome = rollout(made(CARROT), policy, seed=0, execution=Execution(execute_steps=8))
        assert outcome.instruction == policy.told == "put carrot on plate"
        assert (outcome.steps, outcome.success_at_any_time, outcome.clipped_steps) == (60, False, 0)

    @pytest.mark.parametrize(("task", "seed"), [(STACK, 3), (STACK, 16), (CARROT, 1), (SPOON, 10), (EGGPLANT, 3)])
    def test_the_expert_solves_tasks_and_they_stay_solved(self, made, task, seed):
        outcome = rollout(made(task), SimplerExpertPolicy(made(task)), seed, Execution(execute_steps=1))
        assert outcome.success_at_end
        assert outcome.success_at_any_time
        assert outcome.steps == made(task).max_steps

    @pytest.mark.slow
    @pytest.mark.parametrize("task", TASKS)
    def test_the_expert_solves_at_least_seventy_percent_of_each_tasks_episodes(self, made, task):
        benchmark = made(task)
        solved = sum(is_solved_by_expert(benchmark, seed) for seed in range(EPISODES))
        assert solved >= 0.7 * EPISODES

    def test_the_evaluation_runs_in_worker_processes_and_ends_in_the_table(self, tmp_path):
        tasks = "[{task: PutCarrotOnPlateInScene-v1, episodes: 1}]"
        command = [
            sys.executable,
            "scripts/evaluate.py",
            "--config",
            "configs/eval/simpler.yaml",
            "--out",
            str(tmp_path),
        ]
        command += ["--arms", f"[{{name: expert, policy: expert, tasks: {tasks}}}]", "--workers", "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        (only,) = read_results(tmp_path / "results.jsonl")
        assert (only.seed, only.success_at_end, only.error) == (0, True, None)
        assert (tmp_path / only.video).is_file()
        assert "not official scores" in write_table(tmp_path)


def share_of_photograph(picture, name):
    """Share of the picture's pixels that are the photograph's."""
    from PIL import Image

    file = ASSETS / "data/tasks/bridge_v2_real2sim_dataset/real_inpainting" / name
    photograph = np.asarray(Image.open(file).convert("RGB").resize((640, 480), Image.Resampling.BILINEAR)).astype(int)
    return float((np.abs(picture - photograph).max(-1) < 40).mean())


def carried(benchmark, seed):
    """Where the expert has the source and the target after 30 steps; without rendering."""
    policy = SimplerExpertPolicy(benchmark)
    policy.reset(benchmark.reset(seed), seed)
    for _ in range(30):
        benchmark.step(policy.act(None).actions[0])
    return np.concatenate([benchmark.object_pose("source"), benchmark.object_pose("target")])


def is_solved_by_expert(benchmark, seed):
    """Without rendering."""
    policy = SimplerExpertPolicy(benchmark)
    policy.reset(benchmark.reset(seed), seed)
    step = None
    while step is None or not step.is_over:
        step = benchmark.step(policy.act(None).actions[0])
    return step.success
