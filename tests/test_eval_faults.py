"""Workers, servers and whole evaluations that crash, hang or are killed: the results are those of a calm run."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_eval_rollout import FACTS, Line, Walker

from eval.execution import Execution
from eval.policy_process import PolicyProcessError
from eval.results import read_results
from eval.runner import run
from eval.workshop import Job, Setup

pytestmark = pytest.mark.timeout(900)
TESTS = Path(__file__).parent
SEEDS = range(12)


class Rough(Line):
    """A line on which `trouble`, of KIND:SEED, comes to the episode of that seed: once, or always."""

    def __init__(self, task, image_size, folder="", trouble="none:-1", step_s=0.0, cameras=("front",)):
        super().__init__()
        self.task, self.facts, self.step_s, self.marks = task, FACTS | {"image_size": image_size}, step_s, Path(folder)
        self.kind, self.victim = trouble.split(":")

    def reset(self, seed):
        self.seed = seed
        return super().reset(seed)

    def step(self, action):
        time.sleep(self.step_s)
        mark = self.marks / f"{self.kind}_{self.seed}"
        if str(self.seed) == self.victim and self.steps == 3 and not mark.exists():
            if not self.kind.startswith("always"):
                mark.touch()
            if self.kind == "hangs":
                time.sleep(3600)
            if self.kind == "exits":
                os._exit(7)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Guided(Walker):
    """Walks as told with a push of its own, drawn anew in each episode; many can be served at once."""

    image_size = 4

    def __init__(self, path):
        if path == "unloadable":
            raise ValueError("no such weights")
        super().__init__()
        self.path = path

    def reset(self, instruction, seed):
        self.session = self.start(instruction, seed)

    def act(self, observation):
        return self.act_many([observation], [self.session])[0]

    def start(self, instruction, seed):
        return -1.0 if instruction == "left" else 1.0, np.random.default_rng(seed)

    def act_many(self, observations, sessions):
        chunks = []
        for direction, drawn in sessions:
            self.direction = {"nan": np.nan, "far": 1e6}.get(self.path, 0.2 * direction + drawn.normal(0, 0.4))
            chunks.append(super().act(None))
        return chunks


SETUP = Setup(
    make_policy=f"{__name__}:Guided",
    make_benchmark=f"{__name__}:Rough",
    make_expert="no expert",
    execution=Execution(execute_steps=2),
    image_size=4,
)


def jobs(seeds=SEEDS, policies=("guided", "random")):
    return [
        Job(arm=policy, task="Line", seed=seed, policy=policy, is_recorded=seed == 1)
        for policy in policies
        for seed in seeds
    ]


def rough(folder, **more):
    return replace(SETUP, benchmark_options={"folder": str(folder), **more})


def steadily(results):
    """What must not depend on what happened to the processes."""
    return [replace(item, seconds=0.0, attempts=1, faults=[], versions={}) for item in results]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The results of a run that nothing disturbs."""
    results = steadily(run(jobs(), SETUP, tmp_path_factory.mktemp("calm"), workers=1))
    assert {item.error for item in results} == {None}
    assert {item.success_at_end for item in results if item.arm == "guided"} == {True, False}
    return results


def lines(folder):
    file = folder / "results.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def kill_at_random(out, stopping, kills, killed):
    """Once there is a result, kill one of this process's workers or servers every moment or so."""
    while not stopping.wait(0.02) and lines(out) == 0:
        pass
    for _ in range(kills):
        processes = multiprocessing.active_children()
        if processes:
            killed.append(random.choice(processes))
            killed[-1].kill()
        if stopping.wait(random.uniform(0.2, 3.0)):
            return


def run_under_fire(wanted, setup, out, kills=5):
    """The results; some of the processes were killed, at an episode or between two."""
    stopping, killed = threading.Event(), []
    killer = threading.Thread(target=kill_at_random, args=(out, stopping, kills, killed))
    killer.start()
    try:
        results = run(wanted, setup, out, workers=2, attempts=50)
    finally:
        stopping.set()
        killer.join()
    assert killed
    return results


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("is killed", "its process was killed by signal 9, often by the system, for lack of memory"),
        ("exits", "its process ended with status 7"),
        ("hangs", "there was no result after 20 s, so its process was killed"),
    ],
)
def test_a_lost_worker_costs_one_attempt_of_its_episode(tmp_path, calm, capsys, kind, reason):
    setup = rough(tmp_path, trouble=f"{kind}:3")
    timeout_s = 20.0 if kind == "hangs" else 900.0
    results = run(jobs(policies=["guided"]), setup, tmp_path, workers=2, timeout_s=timeout_s)
    assert steadily(results) == [item for item in calm if item.arm == "guided"]
    hit = [item for item in results if item.attempts > 1]
    assert [(item.seed, item.attempts, item.faults) for item in hit] == [(3, 2, [reason])]
    assert f"begun anew: guided, Line, seed 3: {reason}" in capsys.readouterr().err


def test_an_episode_that_always_kills_its_worker_fails_and_the_others_go_on(tmp_path, calm):
    setup = rough(tmp_path, trouble="always kills:3")
    results = run(jobs(policies=["guided"]), setup, tmp_path, workers=2, attempts=2)
    failed = results.pop(3)
    assert failed.error.startswith(
        "none of 2 attempts came to an end; the last one: its process was killed by signal 9"
    )
    assert (failed.attempts, len(failed.faults), failed.success_at_end) == (2, 2, False)
    assert steadily(results) == [item for item in calm if item.arm == "guided" and item.seed != 3]
    again = run(jobs(policies=["guided"]), SETUP, tmp_path, workers=1)
    assert steadily(again) == [item for item in calm if item.arm == "guided"]


def test_workers_killed_at_random_change_no_result(tmp_path, calm):
    results = run_under_fire(jobs(), rough(tmp_path, step_s=0.05), tmp_path)
    assert steadily(results) == calm


def test_a_served_policy_gives_the_results_of_one_in_each_worker(tmp_path, calm):
    assert steadily(run(jobs(), replace(SETUP, server_batch=1), tmp_path, workers=2)) == calm


def test_server_and_workers_killed_at_random_change_no_result(tmp_path, calm):
    results = run_under_fire(jobs(), replace(rough(tmp_path, step_s=0.05), server_batch=1), tmp_path)
    assert steadily(results) == calm


def test_a_server_that_is_killed_is_begun_anew_and_costs_one_attempt_of_each_episode(tmp_path, calm, capsys):
    setup = replace(rough(tmp_path, step_s=0.05), server_batch=1)
    done = threading.Event()

    def kill_the_server():
        while not done.wait(0.05):
            servers = [one for one in multiprocessing.active_children() if one.name.startswith("policy")]
            if servers and (tmp_path / "results.jsonl").exists():
                servers[0].kill()
                return

    killer = threading.Thread(target=kill_the_server)
    killer.start()
    try:
        results = run(jobs(policies=["guided"]), setup, tmp_path, workers=2)
    finally:
        done.set()
        killer.join()
    assert steadily(results) == [item for item in calm if item.arm == "guided"]
    hit = [item for item in results if item.attempts > 1]
    assert 1 <= len(hit) <= 2
    assert all(item.attempts == 2 and item.faults[0].startswith("RemoteError") for item in hit)
    assert "the server of guided was lost (status -9); starting it again" in capsys.readouterr().err


def test_a_policy_that_cannot_be_loaded_for_its_server_is_said_once(tmp_path):
    with pytest.raises(PolicyProcessError, match=r"the server of unloadable ended before it was ready \(status 1\)"):
        run(jobs(policies=["unloadable"]), replace(SETUP, server_batch=1), tmp_path, workers=2)
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(("policy", "said"), [("nan", "answered nan for x"), ("far", "times its range")])
def test_a_broken_action_ends_its_episode_with_an_error(tmp_path, policy, said):
    (item,) = run(jobs(seeds=[2], policies=[policy]), SETUP, tmp_path, workers=1)
    assert said in item.error
    assert (item.success_at_end, item.success_at_any_time, item.steps) == (False, False, 0)


def main(folder):
    """What a script of its own does in the tests below; says which processes it has."""
    run(jobs(), rough(folder, step_s=0.05), folder, workers=2, attempts=50)


def start(folder):
    program = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_eval_faults as t; "
        f"from core.run import run_script; run_script(lambda: t.main({str(folder)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", program], cwd=TESTS.parent, stderr=subprocess.PIPE, text=True)


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def wait_until(condition, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def are_gone(pids):
    return not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


def test_an_evaluation_that_is_killed_again_and_again_ends_with_the_results_of_a_calm_one(tmp_path, calm):
    for target in (1, 9, 15):
        process = start(tmp_path)
        wait_until(lambda target=target: lines(tmp_path) >= target)
        workers = descendants(process.pid)
        process.kill()
        process.wait()
        process.stderr.close()
        assert len(workers) >= 2
        wait_until(lambda workers=workers: are_gone(workers))
    before = (tmp_path / "results.jsonl").read_bytes().rsplit(b"\n", 1)[0]
    main(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes().startswith(before)
    results = read_results(tmp_path / "results.jsonl")
    assert steadily(sorted(results, key=lambda item: (item.arm, item.seed))) == calm
    assert lines(tmp_path) == len(calm)


def test_ctrl_c_leaves_valid_results_and_no_process(tmp_path, calm):
    process = start(tmp_path)
    wait_until(lambda: lines(tmp_path) >= 3)
    workers = descendants(process.pid)
    for pid in [process.pid, *workers]:  # a terminal interrupts all of them
        os.kill(pid, signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.endswith("interrupted; the same command goes on where it stopped\n")
    wait_until(lambda: are_gone(workers))
    partial = read_results(tmp_path / "results.jsonl")
    assert 3 <= len(partial) < len(calm)
    assert all(item in calm for item in steadily(partial))


@pytest.mark.sim
def test_in_the_simulator_too_workers_killed_at_random_change_no_result(tmp_path):
    setup = replace(
        SETUP,
        make_benchmark="eval.maniskill:ManiSkillBenchmark",
        make_expert="eval.baselines:ExpertPolicy",
        image_size=32,
    )
    wanted = [
        Job(arm=arm, task="PushCubeDirections", seed=10_000_000 + index, policy=arm, is_recorded=index == 1)
        for arm in ("expert", "random")
        for index in range(3)
    ]
    for name in ("calm", "rough"):
        (tmp_path / name).mkdir()
    calm = run(wanted, setup, tmp_path / "calm", workers=1)
    assert {item.error for item in calm} == {None}
    rough_results = run_under_fire(wanted, setup, tmp_path / "rough", kills=2)
    assert steadily(rough_results) == steadily(calm)
