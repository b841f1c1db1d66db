"""Many scenes of one ManiSkill task: each gives what a single one gives.

ManiSkill itself simulates several scenes on a CUDA GPU only. Elsewhere `Joined` stands in for its simulator: several of
one scene each that answer together, as ManiSkill does, in tensors with a row for each scene.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.baselines import ExpertPolicy, RandomPolicy
from eval.execution import Execution
from eval.maniskill import ManiSkillBenchmark
from eval.maniskill_registry import make_environment
from eval.maniskill_scenes import ManiSkillScenes, make_scenes
from eval.results import require_shared_protocol
from eval.rollout import Start, rollouts
from eval.runner import run
from eval.scenes import SeparateSimulators
from eval.workshop import Job, Setup

pytestmark = [pytest.mark.sim, pytest.mark.timeout(900)]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="ManiSkill's GPU simulation needs a CUDA device")
SETUP = Setup(
    make_policy="no trained policy",
    make_benchmark="eval.maniskill:ManiSkillBenchmark",
    make_expert="eval.baselines:ExpertPolicy",
    make_scenes="eval.maniskill_scenes:make_scenes",
    execution=Execution(),
    image_size=32,
)
VARIED = {
    "camera_jitter": {"translation_m": 0.05},
    "nuisances": {"light": 0.3, "distractor": True},
}


def together(values):
    """What several scenes answer: rows of one tensor, items of one list, or what all of them agree on."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return list(chain(*values))
    if isinstance(first, dict):
        return {key: together([value[key] for value in values]) for key in first}
    if first is None or isinstance(first, (str, bool, int, float, tuple, torch.device)):
        assert len(set(values)) == 1
        return first
    return Joined(values)


class Joined:
    """Things that there is one of in each scene."""

    def __init__(self, parts):
        self.parts = parts

    def __getattr__(self, name):
        values = [getattr(part, name) for part in self.parts]
        return values[0] if name == "controller" else together(values)  # all have the same one

    def __call__(self, *given, **named):
        return together([part(*given, **named) for part in self.parts])


class JoinedSimulator(Joined):
    """Simulators of one scene each in the place of one that has several."""

    def reset(self, seed, options):
        assert len(seed) == len(self.parts)
        if options.get("reconfigure"):  # scenes are built by their own seeds, all states are drawn from the first
            for part, own in zip(self.parts, seed, strict=True):
                part.reset(seed=own, options=options)
                part.reset(seed=seed[0])
            return {}, {"reconfigure": True}
        index = int(options["env_idx"])
        return self.parts[index].reset(seed=seed[index])

    def step(self, actions):
        rows = zip(self.parts, actions, strict=True)
        return None, None, None, None, together([part.step(row[None])[4] for part, row in rows])


class HidingSimulator(JoinedSimulator):
    """Keeps where things are to itself, as a GPU does, until it is asked to tell; counts how often."""

    gpu_sim_enabled = True
    built = told = 0

    @property
    def scene(self):
        return SimpleNamespace(sub_scenes=[part.scene.sub_scenes[0] for part in self.parts], px=self)

    def sync_poses_gpu_to_cpu(self):
        self.told += 1

    def reset(self, seed, options):
        self.built += "reconfigure" in options
        return super().reset(seed, options)


def simulators_of(kind):
    """Makes simulators that have several scenes without a GPU."""

    def make(rules, options, image_size, scenes):
        parts = [make_environment(rules, options, image_size) for _ in range(scenes)]
        for part in parts:
            part.reconfiguration_freq = 0  # as tasks have it where there are several scenes
        return kind(parts)

    return make


@pytest.fixture
def joined(monkeypatch):
    """Simulators of any number of scenes."""
    monkeypatch.setattr("eval.maniskill.make_environment", simulators_of(JoinedSimulator))


def assert_same(scene, single):
    seen, expected = scene.observe(), single.observe()
    assert seen.images.keys() == expected.images.keys()
    for name, image in expected.images.items():
        np.testing.assert_array_equal(seen.images[name], image)
    np.testing.assert_array_equal(seen.proprioception, expected.proprioception)
    np.testing.assert_array_equal(scene.get_state(), single.get_state())
    np.testing.assert_array_equal(scene.robot_base_pose(), single.robot_base_pose())
    assert scene.initial_state() == single.initial_state()


def assert_scenes_are_like_single_ones(scenes, single, waves):
    """Whatever was simulated before, and beside them."""
    random = np.random.default_rng(0)
    space = single.action_space
    for seeds in waves:
        actions = random.uniform(0.6 * np.array(space.low), 0.6 * np.array(space.high), (len(seeds), 3, space.dims))
        told = scenes.reset(seeds)
        results = [scenes.step(list(row)) for row in actions.swapaxes(0, 1)]
        for index, seed in enumerate(seeds):
            assert single.reset(seed) == told[index]
            assert [single.step(action) for action in actions[index]] == [row[index] for row in results]
            assert_same(scenes.each[index], single)


@pytest.mark.parametrize(
    ("task", "cameras", "options"),
    [
        ("PushCubeDirections", ("front", "random_1"), VARIED),
        ("PickCube-v1", ("base_camera",), {"controller": "pd_joint_pos"}),
        ("PegInsertionSide-v1", ("base_camera", "hand_camera"), {"camera_jitter": {"translation_m": 0.05}}),
    ],
)
def test_scenes_side_by_side_are_each_like_a_single_one(joined, task, cameras, options):
    scenes = ManiSkillScenes(2, task=task, cameras=cameras, image_size=32, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.maniskill.make_environment", make_environment)
        single = ManiSkillBenchmark(task, cameras, 32, **options)
    assert len({id(scene._scene) for scene in scenes.each}) == 2
    assert_scenes_are_like_single_ones(scenes, single, [(7, 8), (8, 7), (9,), (7, 7)])
    scenes.close()
    single.close()


@pytest.mark.parametrize(("task", "built"), [("PushCube-v1", 0), ("PegInsertionSide-v1", 2)])
def test_a_gpu_is_asked_where_things_are_whenever_they_moved_and_keeps_scenes_that_look_the_same(
    monkeypatch, task, built
):
    monkeypatch.setattr("eval.maniskill.make_environment", simulators_of(HidingSimulator))
    scenes = ManiSkillScenes(2, task=task, cameras=(), image_size=32)
    starts = []
    for seeds in ((3, 4), (3, 4), (4, 3)):
        before = scenes.each[0].environment.told
        scenes.reset(seeds)
        starts.append([scene.get_state() for scene in scenes.each])
        for _ in range(2):
            scenes.step([np.array([0.05, 0.0, -0.05, 0.0, 0.0, 0.0, 1.0])] * 2)
        assert scenes.each[0].environment.told == before + 3
    assert scenes.each[0].environment.built == built
    np.testing.assert_allclose(starts[0], starts[1], atol=1e-6)
    np.testing.assert_allclose(starts[0], starts[2][::-1], atol=1e-6)
    scenes.close()


@pytest.mark.parametrize("task", ["PushCubeDirections", "StackPyramid-v1", "PegInsertionSide-v1"])
def test_one_scene_that_is_simulated_as_if_there_were_more_is_like_a_single_one(task):
    scenes = ManiSkillScenes(1, task=task, cameras=("front",), image_size=32)
    single = ManiSkillBenchmark(task, ("front",), 32)
    assert scenes.each[0].facts == single.facts
    assert_scenes_are_like_single_ones(scenes, single, [(7,), (8,), (7,)])
    scenes.close()
    single.close()


def test_a_scene_whose_episode_is_over_disturbs_no_other(joined):
    scenes = ManiSkillScenes(2, task="PushCube-v1", cameras=(), image_size=32)
    action = np.array([0.1, 0.0, -0.1, 0.0, 0.0, 0.0, -1.0])
    states = []
    for other in (action, None):
        scenes.reset([3, 4])
        results = [scenes.step([action, other]) for _ in range(4)]
        assert [result[1] is None for result in results] == [other is None] * 4
        states.append(scenes.each[0].get_state())
    np.testing.assert_array_equal(*states)
    scenes.close()


@pytest.mark.parametrize("able", [0, 1])
def test_each_scene_is_judged_by_itself(joined, able):
    scenes = ManiSkillScenes(2, task="PushCube-v1", cameras=(), image_size=32)
    starts = [Start(10_000_000), Start(10_000_001)]
    policies = [RandomPolicy(scene.action_space, scale=0.1) for scene in scenes.each]
    policies[able] = ExpertPolicy(scenes.each[able])
    outcomes = rollouts(scenes, policies, starts, Execution())
    assert [outcome.success_at_end for outcome in outcomes] == [able == 0, able == 1]
    scenes.close()


def test_the_expert_comes_to_the_same_in_three_scenes_as_in_one(tmp_path):
    wanted = [
        Job(arm=arm, task="PushCube-v1", seed=10_000_000 + index, policy=arm, is_recorded=index == 1)
        for arm in ("expert", "random")
        for index in range(4)
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    one = run(wanted, SETUP, tmp_path / "one", workers=1)
    three = run(wanted, replace(SETUP, scenes=3), tmp_path / "three", workers=1)
    assert [replace(item, seconds=0.0) for item in three] == [replace(item, seconds=0.0) for item in one]
    assert [item.success_at_end for item in three] == [True] * 4 + [False] * 4
    name = "videos/expert_PushCube-v1_10000001.mp4"
    assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_without_a_gpu_scenes_have_simulators_of_their_own_and_cuda_is_refused():
    scenes = make_scenes(2, task="PushCube-v1", cameras=(), image_size=32)
    assert isinstance(scenes, SeparateSimulators)
    assert [scene.facts["physics"] for scene in scenes.each] == ["physx_cpu"] * 2
    scenes.close()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="physics = physx_cuda needs a CUDA GPU, and torch finds none"):
            make_scenes(2, task="PushCube-v1", physics="physx_cuda")


def check_scenes_on_a_gpu():
    """For a process that has simulated nothing on its CPU before, as SAPIEN demands."""
    scenes = make_scenes(4, task="PushCubeDirections", cameras=("front",), image_size=64, physics="physx_cuda")
    starts, pictures = {}, {}
    for seeds in ((5, 6, 7, 8), (8, 5, 6), (7, 8, 5, 6)):
        scenes.reset(seeds)
        for scene, seed in zip(scenes.each, seeds, strict=False):
            place, picture = scene.initial_state()["obj"], scene.observe().images["front"].astype(int)
            assert place == pytest.approx(starts.setdefault(seed, place), abs=1e-3)
            assert np.abs(picture - pictures.setdefault(seed, picture)).mean() < 0.5
        for _ in range(3):
            scenes.step([np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])] * len(seeds))
        moved = scenes.each[0].observe().images["front"].astype(int) - pictures[seeds[0]]
        assert np.abs(moved).mean() > 0.5
    assert len({tuple(place) for place in starts.values()}) == 4
    assert np.abs(pictures[5] - pictures[6]).mean() > 0.5
    scenes.close()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_seed_is_the_same_episode_in_any_scene_and_cameras_see_what_happens():
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        fresh.submit(check_scenes_on_a_gpu).result()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_the_expert_succeeds_and_chance_fails_as_on_the_cpu(tmp_path):
    wanted = [
        Job(arm=arm, task=task, seed=10_000_000 + index, policy=arm, is_recorded=index == 1)
        for arm in ("expert", "random")
        for task in ("PushCube-v1", "PickCube-v1")
        for index in range(10)
    ]
    setup = replace(SETUP, scenes=4, benchmark_options={"physics": "physx_cuda"})
    results = run(wanted, setup, tmp_path, workers=1)
    assert {item.error for item in results} == {None}
    assert {item.protocol.benchmark["physics"] for item in results} == {"physx_cuda"}
    require_shared_protocol(results)
    solved = [sum(item.success_at_end for item in results if item.arm == arm) for arm in ("expert", "random")]
    assert solved[0] >= 18  # of 20; all on the CPU
    assert solved[1] <= 1
