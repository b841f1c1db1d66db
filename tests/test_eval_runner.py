"""Episodes in several processes: resumed, recorded, counted, stopped when hopeless."""

from dataclasses import replace

import av
import numpy as np
import pytest
from test_eval_results import result
from test_eval_rollout import FACTS, Line, Walker

from core.config import ConfigError, load_config
from eval.execution import Execution
from eval.page.numbers import parse_arm
from eval.plan import EvaluateConfig, jobs_of, policy_paths, setup_of
from eval.protocol import ProtocolError, protocol_of
from eval.results import read_results, require_one_protocol, require_shared_protocol
from eval.runner import RunnerError, progress, run
from eval.workshop import Job, Setup

SETUP = Setup(
    make_policy=f"{__name__}:make_policy",
    make_benchmark=f"{__name__}:make_benchmark",
    make_expert="eval.baselines:ExpertPolicy",
    execution=Execution(execute_steps=4),
    image_size=16,
)


class WalkerWithNerves(Walker):
    image_size = 32

    def __init__(self, path):
        super().__init__()
        self.fingerprint, self.path = path, path

    def reset(self, instruction, seed):
        super().reset(instruction, seed)
        if self.path == "broken" or (self.path == "nervous" and seed == 1) or (self.path == "shaky" and seed):
            raise ValueError("lost its nerve")

    def act(self, observation):
        assert observation.images["front"].shape[0] == self.image_size
        return super().act(observation)


class PixelLine(Line):
    def __init__(self, task, image_size, cameras=("front",)):
        super().__init__(("left", "right") if task == "Line" else ("left",))
        self.task, self.image_size, self.cameras = task, image_size, cameras
        self.facts = FACTS | {"image_size": image_size}

    def observe(self):
        image = np.full((self.image_size, self.image_size, 3), 20 * self.steps, np.uint8)
        return type(super().observe())(images=dict.fromkeys(self.cameras, image))


def make_policy(path):
    return WalkerWithNerves(path)


def make_benchmark(task, image_size, says=(), **cameras):
    line = PixelLine(task, image_size, **cameras)
    line.facts = dict(says) or line.facts
    return line


def jobs(policy, seeds, **more):
    return [Job(arm=policy, task="Line", seed=seed, policy=policy, **more) for seed in seeds]


def test_arms_run_in_workers_and_an_error_is_a_recorded_failure(tmp_path, capsys):
    wanted = jobs("nervous", range(4)) + jobs("random", range(2))
    results = {(item.arm, item.seed): item for item in run(wanted, SETUP, tmp_path, workers=2)}
    assert len(results) == 6
    failed = results.pop(("nervous", 1))
    assert failed.error == "ValueError: lost its nerve"
    assert not failed.success_at_end
    assert all(item.error is None for item in results.values())
    assert all(item.success_at_end for item in results.values() if item.arm != "random")
    assert results["random", 0].policy_fingerprint == "random-1"
    assert results["nervous", 0].versions["numpy"] == np.__version__
    said = capsys.readouterr().err
    assert "FAILED nervous, Line, seed 1: ValueError: lost its nerve" in said
    assert "6/6 episodes" in said


def test_episodes_in_the_file_are_not_run_again_but_errors_are(tmp_path):
    setup = replace(SETUP, benchmark_options={"says": FACTS | {"crop": (1, 2)}})
    run(jobs("nervous", range(2)), setup, tmp_path, workers=1)
    before = {item.seed: item for item in read_results(tmp_path / "results.jsonl")}
    after = {item.seed: item for item in run(jobs("nervous", range(3)), setup, tmp_path, workers=1)}
    assert sorted(after) == [0, 1, 2]
    assert after[0] == before[0]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


def test_every_result_says_under_which_conditions_it_was_got(tmp_path):
    execution = Execution(execute_steps=2, ensemble_decay=0.1, sticky_gripper_steps=0, action_scale=0.5)
    setup = replace(SETUP, execution=execution)
    wanted = jobs("calm", [0]) + jobs("random", [0]) + jobs("calm2", [0], is_shuffled=True)
    run(wanted, setup, tmp_path, workers=1)
    calm, random, shuffled = sorted(read_results(tmp_path / "results.jsonl"), key=lambda item: wanted_order(item.arm))
    assert calm.protocol.benchmark == {
        "step_limit": 10,
        "control_hz": 10.0,
        "action_space": "delta_end_effector (robot_base, rotation_vector): x m -1..1",
        "stop_beyond": 5.0,
    } | {key: value for key, value in FACTS.items() if key != "image_size"}
    assert calm.protocol.policy == {
        "chunk_horizon": 4,
        "execute_steps": 2,
        "ensemble_decay": 0.1,
        "sticky_gripper_steps": 0,
        "action_scale": 0.5,
        "temperature": None,
        "cameras": ["front"],
        "image_size": 32,
        "shuffled_instruction": False,
    }
    assert random.protocol.policy["chunk_horizon"] == 16
    assert random.protocol.policy["cameras"] == []
    assert shuffled.protocol.policy["shuffled_instruction"]
    assert calm.protocol_fingerprint == random.protocol_fingerprint == calm.protocol.fingerprint
    assert (calm.attempts, calm.faults) == (1, [])
    require_shared_protocol([calm, random, shuffled])


def test_a_policy_that_says_its_horizon_is_taken_at_its_word():
    policy = WalkerWithNerves("calm")
    shown = protocol_of(PixelLine("Line", 32), policy, Execution(), shuffled_instruction=False)
    assert (shown.policy["chunk_horizon"], shown.with_horizon(4).policy["chunk_horizon"]) == (None, 4)
    policy.horizon, policy.temperature = 8, 0.0
    said = protocol_of(PixelLine("Line", 32), policy, Execution(), shuffled_instruction=False)
    assert said == said.with_horizon(4)
    assert (said.policy["chunk_horizon"], said.policy["temperature"]) == (8, 0.0)


def wanted_order(arm):
    return ["calm", "random", "calm2"].index(arm)


def test_a_benchmark_that_hides_a_fact_is_an_error(tmp_path):
    setup = replace(SETUP, benchmark_options={"says": {"simulator": "none"}})
    refused = "calm cannot be tried on Line: ProtocolError: the benchmark of Line does not say its shader, robot"
    with pytest.raises(RunnerError, match=refused):
        run(jobs("calm", [0]), setup, tmp_path, workers=1)
    assert not (tmp_path / "results.jsonl").exists()


def test_episodes_under_other_conditions_do_not_go_on_with_those_in_the_file(tmp_path):
    run(jobs("calm", range(2)), SETUP, tmp_path, workers=1)
    before = (tmp_path / "results.jsonl").read_bytes()
    changed = replace(SETUP, benchmark_options={"says": FACTS | {"shader": "rt", "image_size": 32}})
    with pytest.raises(ProtocolError, match=r"was begun under other conditions: Line by calm: .*shader: none -> rt"):
        run(jobs("calm", range(3)), changed, tmp_path, workers=1)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_an_episode_that_failed_early_may_be_counted_with_the_others(tmp_path):
    results = run(jobs("nervous", range(3)), SETUP, tmp_path, workers=1)
    failed = next(item for item in results if item.error)
    assert failed.protocol.policy["chunk_horizon"] is None
    require_one_protocol(results)


def test_results_are_the_same_whatever_the_number_of_workers(tmp_path):
    wanted = [*jobs("random", range(6)), *jobs("nervous", range(6)), *jobs("calm", range(6), is_shuffled=True)]
    found = [run(wanted, SETUP, tmp_path_of(tmp_path, workers), workers) for workers in (1, 3)]
    assert [(item.arm, item.seed) for item in found[0]] == [(job.arm, job.seed) for job in wanted]
    assert [replace(item, seconds=0) for item in found[0]] == [replace(item, seconds=0) for item in found[1]]
    assert len({item.success_at_end for item in found[0] if item.arm == "nervous"}) == 2


def tmp_path_of(tmp_path, workers):
    (tmp_path / str(workers)).mkdir()
    return tmp_path / str(workers)


def test_a_hopeless_evaluation_stops_early_with_the_reason(tmp_path):
    with pytest.raises(RunnerError, match="first 3 episodes all failed with: ValueError: lost its nerve"):
        run(jobs("broken", range(50)), SETUP, tmp_path, workers=1)
    assert len(read_results(tmp_path / "results.jsonl")) == 3


def test_a_shuffled_arm_is_told_the_wrong_thing_and_fails_and_a_recording_shows_all_of_it(tmp_path):
    wanted = jobs("calm", range(2), is_shuffled=True, is_recorded=True)
    for item in run(wanted, SETUP, tmp_path, workers=1):
        assert item.instruction == ("right" if item.seed % 2 == 0 else "left")
        assert not item.success_at_any_time
        with av.open(str(tmp_path / item.video)) as file:
            stream = file.streams.video[0]
            assert (stream.width, stream.height, stream.frames, stream.average_rate) == (32, 32, 11, 10)
            brightness = [frame.to_ndarray(format="rgb24").mean() for frame in file.decode(stream)]
        assert brightness == pytest.approx([20 * step for step in range(11)], abs=4)


@pytest.mark.sim
def test_in_the_simulator_the_expert_succeeds_and_random_actions_fail(tmp_path):
    setup = replace(SETUP, make_benchmark="eval.maniskill:ManiSkillBenchmark")
    wanted = [
        Job(arm=arm, task="PushCubeDirections", seed=10_000_000 + index, policy=arm, is_recorded=index == 0)
        for arm in ("expert", "random")
        for index in range(4)
    ]
    results = run(wanted, setup, tmp_path, workers=1)
    assert {item.error for item in results} == {None}
    solved = {arm: sum(item.success_at_end for item in results if item.arm == arm) for arm in ("expert", "random")}
    assert solved["expert"] >= 3
    assert solved["random"] <= 1
    assert all((tmp_path / item.video).stat().st_size > 1000 for item in results if item.video)
    assert len({item.instruction for item in results}) == 4


def test_progress_says_rate_time_to_go_and_success_by_arm():
    line = progress([result("a"), result("a", seed=1, at_end=False), result("b")], total=9, seconds=30.0)
    assert line == "evaluate: 3/9 episodes, 0.10/s, 1:00 to go; solved: a 1/2, b 1/1"


def test_a_plan_says_how_workers_work():
    values = {"out": "o", "arms": [], "ensemble_decay": 0.1, "execute_steps": 1, "benchmark_options": {"robot": "xarm"}}
    setup = setup_of(load_config(EvaluateConfig, None, values | {"server_batch": 4, "scenes": 16}), "a.b:c")
    assert setup.execution == Execution(execute_steps=1, ensemble_decay=0.1)
    assert setup.benchmark_options == {"robot": "xarm"}
    assert (setup.make_policy, setup.server_batch, setup.scenes) == ("a.b:c", 4, 16)
    assert setup.make_scenes == "eval.maniskill_scenes:make_scenes"
    with pytest.raises(ConfigError, match="benchmark = chess: the known ones are maniskill, simpler"):
        load_config(EvaluateConfig, None, {"out": "o", "arms": [], "benchmark": "chess"})


def test_all_arms_of_a_plan_get_the_same_seeds(tmp_path):
    arms = [
        {"name": name, "policy": policy, "tasks": [{"task": "Line", "episodes": 3}]}
        for name, policy in (("trained", "trained_100"), ("random", "random"), ("far", "ws://robot:8000"))
    ]
    config = load_config(EvaluateConfig, None, {"out": "o", "policies": "p", "arms": arms, "video_every": 2})
    trained, random, far = jobs_of(config)[:3], jobs_of(config)[3:6], jobs_of(config)[6:]
    assert [job.seed for job in trained] == [job.seed for job in random] == [10_000_000, 10_000_001, 10_000_002]
    assert [job.is_recorded for job in trained] == [True, False, True]
    assert [arm[0].policy for arm in (trained, random, far)] == ["p/trained_100", "random", "ws://robot:8000"]
    assert {name: str(path) for name, path in policy_paths(config).items()} == {"trained": "p/trained_100"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("first_seed", 5, "first_seed"), ("arms", [{"name": "a", "policy": "random", "tasks": []}] * 2, "twice")],
)
def test_a_plan_on_training_seeds_or_with_doubled_arms_is_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(EvaluateConfig, None, {"out": "o", "arms": [], key: value})


def test_an_error_that_comes_again_and_again_does_not_stop_an_evaluation_that_has_got_somewhere(tmp_path):
    run(jobs("shaky", [0]), SETUP, tmp_path, workers=1)
    assert len(run(jobs("shaky", range(5)), SETUP, tmp_path, workers=1)) == 5


@pytest.mark.parametrize("name", ["quickstart", "smoke"])
def test_the_plans_that_come_with_the_project_load(name):
    config = load_config(EvaluateConfig, f"configs/eval/{name}.yaml", {"out": "o"})
    shuffled = {arm.name for arm in config.arms if arm.shuffle_instructions}
    assert shuffled == {"shuffled_instruction"}
    bases = {parse_arm(arm.name).base for arm in config.arms}
    assert bases == {"latent_pretrained", "no_pretraining", "random", "shuffled_instruction"}
