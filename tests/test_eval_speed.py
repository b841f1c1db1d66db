"""What `scripts/benchmark.py eval` measures: both sides do the same, and numbers are of what they say."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from made_up_evaluation import one, protocol_of

from core.spaces import END_EFFECTOR_DELTA
from eval.baselines import RandomPolicy
from eval.execution import Execution
from eval.maniskill import ManiSkillBenchmark
from eval.rollout import rollout
from eval.speed.arrivals import Arrivals
from eval.speed.likeness import structural_similarity
from eval.speed.meshes import CAMERAS, by_meshes, pictures_of_both
from eval.speed.plain_loop import TASK, plain_loop
from eval.speed.rollouts import PLAIN, TARGET, pace, warm_up
from eval.speed.run import benchmark
from eval.speed.server import Crowd, crowd, overhead
from eval.speed.sizes import QUICK, Actor

ROOT = Path(__file__).parents[1]


def test_a_pace_is_of_what_came_after_the_start():
    found = pace(10.0, [14.0, 15.0, 17.0, 22.0], warm=2)
    assert found == ((22 - 15) / 2, (22 - 10) / 4, 15 - 10)


def test_a_runner_is_warm_once_each_worker_has_ended_its_first_episode():
    assert warm_up([7, 8, 9, 10], firsts=[7, 8]) == 2
    assert warm_up([8, 9, 7, 10, 11, 12], firsts=[7, 8]) == 3
    assert warm_up([7, 9, 10, 11, 12, 8], firsts=[7, 8]) == 3


def test_arrivals_are_the_moments_at_which_lines_came(tmp_path):
    file, moments = tmp_path / "lines", [time.perf_counter()]
    with Arrivals(file) as arrivals:
        for number in range(3):
            with file.open("a") as opened:
                opened.write(f"{number}\n")
            while len(arrivals.times) <= number:
                time.sleep(0.001)
            moments.append(time.perf_counter())
        with file.open("a") as opened:
            opened.write("half a line")
    assert len(arrivals.times) == 3
    assert all(low < at < high for low, at, high in zip(moments, arrivals.times, moments[1:], strict=False))


def windowed_similarity(a, b, row, column):
    """The formula of the paper for the window around one pixel, term by term."""
    place = np.arange(-5, 6)
    weights = np.exp(-(place**2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    found = []
    for colour in range(3):
        x, y = (each[row - 5 : row + 6, column - 5 : column + 6, colour].astype(float) for each in (a, b))
        x_mean, y_mean = (weights * x).sum(), (weights * y).sum()
        x_spread, y_spread = (weights * (x - x_mean) ** 2).sum(), (weights * (y - y_mean) ** 2).sum()
        shared = (weights * (x - x_mean) * (y - y_mean)).sum()
        luminance = (2 * x_mean * y_mean + 2.55**2) / (x_mean**2 + y_mean**2 + 2.55**2)
        found.append(luminance * (2 * shared + 7.65**2) / (x_spread + y_spread + 7.65**2))
    return np.mean(found)


def test_structural_similarity_is_that_of_the_paper():
    draws = np.random.default_rng(0)
    a = draws.integers(256, size=(24, 30, 3), dtype=np.uint8)
    b = np.clip(a + draws.normal(0, 60, a.shape), 0, 255).astype(np.uint8)
    found = structural_similarity(a, b)
    assert found.shape == (24, 30)
    for row, column in ((5, 5), (12, 14), (18, 24)):
        assert found[row, column] == pytest.approx(windowed_similarity(a, b, row, column), abs=1e-9)
    np.testing.assert_allclose(structural_similarity(a, a), 1.0)
    assert structural_similarity(a, 255 - a).mean() < -0.5


def with_meshes(meshes, solved, **more):
    protocol = protocol_of(**more)
    protocol = replace(protocol, benchmark=protocol.benchmark | {"robot_meshes": meshes})
    return [one(seed=seed, solved=each, protocol=protocol) for seed, each in enumerate(solved)]


def test_success_with_either_mesh_is_paired_by_seed_and_nothing_else_may_differ():
    lighter, stock = with_meshes("lighter", [1, 1, 1, 0, 0]), with_meshes("stock", [1, 0, 1, 1, 0])
    found = by_meshes(lighter, stock)
    assert found.pairs == (2, 1, 1, 1)
    assert found.difference == 0
    assert found.tango95.low < 0 < found.tango95.high
    with pytest.raises(ValueError, match=r"differ in their meshes only, but differ in: .*robot_meshes.*step_limit"):
        by_meshes(lighter, with_meshes("stock", [1, 0, 1, 1, 0], step_limit=70))
    with pytest.raises(ValueError, match="cannot be paired"):
        by_meshes(lighter, stock[::-1])


class Recorder(RandomPolicy):
    """Remembers what it is shown and answers."""

    cameras, image_size = ("front",), 48
    shown, answered = [], []

    def __init__(self, path):
        super().__init__(END_EFFECTOR_DELTA, scale=0.5)

    def act(self, observation):
        chunk = super().act(observation)
        self.shown.append(observation)
        self.answered.append(chunk.actions)
        return chunk

    @classmethod
    def record(cls):
        """All so far, which is then forgotten."""
        kept = list(cls.shown), list(cls.answered)
        cls.shown.clear()
        cls.answered.clear()
        return kept


@pytest.mark.sim
@pytest.mark.parametrize("shows_each_step", [False, True])
def test_the_plain_loop_runs_the_episode_that_the_runner_runs(shows_each_step):
    sizes, given = QUICK._replace(step_limit=10), Actor(f"{__name__}:Recorder", "", True)
    Recorder.record()
    before = time.perf_counter()
    ends = plain_loop(sizes, given, [3, 4], shows_each_step)
    assert before < ends[0] < ends[1] < time.perf_counter()
    shown, answered = Recorder.record()
    assert len(shown) == 2 * 3  # four steps of each chunk are taken
    scene = ManiSkillBenchmark(TASK, ("front",), Recorder.image_size, max_steps=10)
    rollout(scene, Recorder(""), 3, Execution(execute_steps=sizes.execute_steps))
    scene.close()
    ours, ours_answered = Recorder.record()
    for own, other in zip(ours, shown[:3], strict=True):
        np.testing.assert_array_equal(own.images["front"], other.images["front"])
        np.testing.assert_allclose(own.proprioception, other.proprioception, atol=1e-5)
    np.testing.assert_array_equal(ours_answered, answered[:3])
    assert np.abs(shown[0].images["front"].astype(int) - shown[2].images["front"]).max() > 30


class TwoCameras(Recorder):
    cameras = ("front", "random_1")


@pytest.mark.sim
def test_a_policy_of_two_cameras_is_refused_by_the_plain_loop():
    with pytest.raises(ValueError, match=r"has one camera, the policy sees \['front', 'random_1'\]"):
        plain_loop(QUICK, Actor(f"{__name__}:TwoCameras", "", True), [3], False)


@pytest.mark.sim
def test_pictures_with_either_mesh_are_of_the_same_instants():
    found = pictures_of_both(QUICK._replace(step_limit=11, alike_episodes=1))
    assert {camera: len(pairs) for camera, pairs in found.items()} == dict.fromkeys(CAMERAS, 3)
    for camera, pairs in found.items():
        light, stock = (np.stack(side) for side in zip(*pairs, strict=True))
        assert (light != stock).any(), camera
        assert structural_similarity(light[2], stock[2]).mean() > 0.85
        moved = structural_similarity(light[0], light[2]).mean()
        assert structural_similarity(light[2], stock[2]).mean() > moved


def test_calls_of_a_server_are_timed_in_turn_with_calls_in_this_process():
    found = overhead(calls=10, rounds=2, side=32)
    assert len(found.here.calls) == len(found.there.calls) == 20
    assert 0 < found.here.median_s < found.there.median_s
    assert found.ms(0.5) == pytest.approx(1000 * (found.there.median_s - found.here.median_s))


def test_clients_of_a_crowd_are_answered_and_its_memory_is_watched():
    many = crowd(clients=3, seconds=2.0, side=32)
    assert many.errors == ()
    assert many.answers > 0
    assert all(size > 1 for size in many.memory_mib)
    seen = dict.fromkeys(range(60), 5.0) | {14: 20.0, 15: 99.0, 49: 98.0, 50: 30.0}
    assert Crowd(1, (), 1.0, 1.0, 1.0, tuple(seen.values())).settled_and_late_mib == (20.0, 30.0)


@pytest.mark.slow
def test_sixty_four_clients_for_a_minute_see_no_error_and_take_no_more_memory():
    found = crowd(clients=64, seconds=60.0)
    assert found.errors == ()
    assert found.answers > 64 * 60
    settled, late = found.settled_and_late_mib
    assert late < settled + 32


@pytest.mark.slow
def test_a_server_takes_less_than_two_milliseconds_of_a_call():
    assert min(overhead(calls=1000, rounds=1).ms(0.5) for _ in range(3)) < 2.0


@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_the_command_prints_its_tables_and_keeps_the_numbers(tmp_path):
    out = tmp_path / "numbers.json"
    command = [sys.executable, "scripts/benchmark.py", "eval", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())
    paces = numbers["rollouts"]["seconds an episode"]
    assert list(paces) == [PLAIN, f"{PLAIN}, all pictures", "2 workers"]
    for other in (PLAIN, f"{PLAIN}, all pictures"):
        for field, name in (("steady_s", f"{other} / 2 workers"), ("whole_s", f"{other} / 2 workers, from nothing")):
            ours = [above[field] / below[field] for above, below in zip(paces[other], paces["2 workers"], strict=True)]
            assert numbers["rollouts"][name]["median"] == pytest.approx(median(ours))
            assert f"{median(ours):9.3f}" in done.stdout
    assert f"target: {TARGET}" in done.stdout
    assert "success: not measured; it takes a policy that sees" in done.stdout
    assert "success" not in numbers["meshes"]
    assert numbers["server_overhead"]["through a server"]["p50"] > numbers["server_overhead"]["in this process"]["p50"]
    assert numbers["crowded_server"]["errors"] == []
    refused = subprocess.run([*command[:3], "--only", "9"], cwd=ROOT, capture_output=True, text=True)
    assert "there are no measurements [9]; there are [1, 2, 3, 4]" in refused.stderr
    refused = subprocess.run([*command[:2], "lam", "--policy", "x"], cwd=ROOT, capture_output=True, text=True)
    assert "--policy is for eval" in refused.stderr


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_a_given_policy_tries_the_same_seeds_with_either_mesh(tmp_path):
    out = tmp_path / "numbers.json"
    given = {"policy": "small moves", "make_policy": "eval.speed.sizes:WatchingPolicy"}
    lines = "\n".join(benchmark(True, [2], str(out), **given))
    found = json.loads(out.read_text())["meshes"]
    assert found["success"]["pairs"] == [0, 0, 0, QUICK.success_episodes]
    assert f"the same {QUICK.success_episodes} seeds; small moves acts" in lines
    seconds = [found[f"seconds of a rollout, {meshes}"] for meshes in ("stock", "lighter")]
    by_round = [stock / lighter for stock, lighter in zip(*seconds, strict=True)]
    assert found["stock / lighter, rollouts"]["median"] == pytest.approx(median(by_round))
    for cameras in (1, 2, 3):
        assert found[f"stock / lighter, {cameras} cameras"]["median"] > 0
    assert list(found["structural similarity"]) == list(CAMERAS)
