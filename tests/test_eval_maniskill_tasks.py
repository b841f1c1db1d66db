"""Any task that ManiSkill registers, by its name: it runs, or says in one sentence why it cannot."""

import json
import subprocess
import sys

import numpy as np
import pytest

from core.config import ConfigError
from eval.benchmark import NEEDED_FACTS
from eval.experts import EXPERTS, Expert
from eval.maniskill import ManiSkillBenchmark
from eval.maniskill_registry import instruction_from
from eval.tasks import EVALUATION_TASKS, TASKS


def test_an_instruction_made_of_a_name_is_its_words():
    assert instruction_from("OpenCabinetDrawer-v1") == "open cabinet drawer"
    assert instruction_from("PickCubeSO100-v1") == "pick cube so 100"
    assert instruction_from("RotateValveLevel2-v1") == "rotate valve level 2"


def test_every_described_task_has_instructions_of_its_own_and_experts_are_of_described_tasks():
    described = TASKS | EVALUATION_TASKS
    told = [words for task in described.values() for words in task.instructions]
    assert len(set(told)) == len(told)
    assert not TASKS.keys() & EVALUATION_TASKS.keys()
    assert EXPERTS.keys() <= described.keys()
    assert len({task.environment for task in described.values()}) == 13


@pytest.mark.sim
@pytest.mark.parametrize("task", ["PegInsertionSide-v1", "StackPyramid-v1"])
def test_the_same_seed_gives_the_same_episode_whatever_was_run_before(task):
    benchmark = ManiSkillBenchmark(task, ("front",), 32)

    def run(seed):
        benchmark.reset(seed)
        first = benchmark.observe().images["front"]
        for _ in range(3):
            benchmark.step(np.array([0.1, -0.1, -0.1, 0.0, 0.0, 0.05, -1.0]))
        return first, benchmark.get_state()

    fresh, other, again = run(7), run(8), run(7)
    np.testing.assert_array_equal(fresh[0], again[0])
    np.testing.assert_array_equal(fresh[1], again[1])
    assert np.abs(fresh[1] - other[1]).max() > 0.01
    benchmark.reset(9)  # looked at, but nothing done
    benchmark.reset(7)
    np.testing.assert_array_equal(benchmark.observe().images["front"], fresh[0])
    benchmark.close()


@pytest.mark.sim
def test_a_task_that_nobody_described_runs_with_what_its_registration_says():
    benchmark = ManiSkillBenchmark("PickCubeSO100-v1", ("base_camera",), 32)
    assert benchmark.reset(1) == "pick cube so 100"
    assert benchmark.max_steps == 50
    assert benchmark.facts["instruction"] == "derived from the task's name"
    assert (benchmark.facts["robot"], benchmark.facts["robot_meshes"]) == ("so100", "stock")
    assert benchmark.action_space.kind == "delta_joint_position"
    assert benchmark.observe().images["base_camera"].std() > 5
    assert not benchmark.step(np.zeros(6)).success
    benchmark.close()


@pytest.mark.sim
def test_facts_are_data_and_name_what_a_score_depends_on():
    benchmark = ManiSkillBenchmark("PushCube-v1", (), max_steps=2, robot_meshes="stock")
    facts = benchmark.facts
    assert json.loads(json.dumps(facts)) == facts
    assert set(NEEDED_FACTS) <= facts.keys()
    assert facts["simulator"].startswith("mani-skill 3")
    assert facts["robot_meshes"] == "stock"
    assert "after 2 control steps (registered: 50)" in facts["termination"]
    benchmark.reset(0)
    assert [benchmark.step(np.zeros(7)).is_over for _ in range(2)] == [False, True]
    benchmark.close()


@pytest.mark.sim
def test_stock_and_lighter_meshes_can_be_chosen_side_by_side():
    light, stock = (
        ManiSkillBenchmark("PushCube-v1", ("front",), 64, robot_meshes=each) for each in ("lighter", "stock")
    )
    pictures = []
    for benchmark in (light, stock, light):
        for _ in range(2):
            benchmark.reset(5)
            benchmark.step(np.zeros(7))  # so that the next reset builds the scene anew
        pictures.append(benchmark.render()["front"].astype(int))
        assert ("panda_v2" in str(benchmark._environment.agent.urdf_path)) is True
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 2
    light.close()
    stock.close()


@pytest.mark.sim
@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("PickCub-v1", {}, ValueError, r"unknown task 'PickCub-v1'; did you mean PickCube-v1"),
        ("PickCubeSO10-v1", {}, ValueError, r"did you mean PickCubeSO100-v1"),
        ("PickCube-v1", {"robot": "pandas"}, ValueError, r"does not offer 'pandas'; there are: panda, fetch"),
        ("RotateValveLevel0-v1", {"robot": "panda"}, ValueError, r"does not offer 'panda'; there are: only its own"),
        ("TwoRobotPickCube-v1", {}, ValueError, "has 2 robots; this benchmark moves one"),
        ("Empty-v1", {}, ValueError, "has no success that could be judged"),
        ("PushCube-v1", {"controler": "x"}, ConfigError, "Did you mean controller"),
        ("PushCube-v1", {"cameras": ("base_camra",)}, ValueError, "itself has base_camera, render_camera, and added"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(task, options, error, message):
    with pytest.raises(error, match=message):
        ManiSkillBenchmark(task, **{"cameras": ()} | options)


@pytest.mark.sim
@pytest.mark.parametrize(
    ("task", "options", "command"),
    [
        ("PickSingleYCB-v1", "", "download_asset ycb -y"),
        ("PickCube-v1", ", robot='xarm6_robotiq'", "download_asset xarm6 -y"),
        ("PickCubeWidowXAI-v1", "", "download_asset widowxai -y"),
        ("ReplicaCAD_SceneManipulation-v1", "", "download_asset ReplicaCAD -y"),
    ],
)
def test_missing_files_end_in_one_sentence_with_the_command_that_gets_them_and_never_at_a_prompt(
    tmp_path, monkeypatch, task, options, command
):
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    program = f"from eval.maniskill import ManiSkillBenchmark; ManiSkillBenchmark('{task}', (){options})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: ")
    assert last.endswith(command)
    assert "(y|n)" not in done.stdout


@pytest.mark.sim
@pytest.mark.parametrize("task", sorted(EXPERTS.keys() & EVALUATION_TASKS.keys()))
def test_experts_of_further_tasks_solve_them_within_their_step_limit(task):
    benchmark = ManiSkillBenchmark(task, ())
    solved = []
    for seed in range(600_000, 600_003):
        benchmark.reset(seed)
        expert = Expert(benchmark, seed, speed=0.65)
        solved.append([benchmark.step(expert.decide().action).success for _ in range(benchmark.max_steps)][-1])
    assert sum(solved) >= 2
    benchmark.close()
