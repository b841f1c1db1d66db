"""Several episodes at once: each comes to what it comes to alone, whatever happens to the others."""

from dataclasses import replace

import numpy as np
import pytest
from test_eval_faults import Guided, Rough, steadily
from test_eval_rollout import SPACE, Line, Walker, take

from core.policy import ActionChunk
from eval.execution import Execution
from eval.results import read_results
from eval.rollout import Outcome, RolloutError, Start, rollout, rollouts
from eval.runner import run
from eval.scenes import SeparateSimulators
from eval.workshop import Job, Setup

pytestmark = pytest.mark.timeout(900)
SEEDS = range(7)
SETUP = Setup(
    make_policy=f"{__name__}:make_policy",
    make_benchmark=f"{__name__}:Field",
    make_expert=f"{__name__}:Expert",
    execution=Execution(execute_steps=2),
    image_size=4,
)


class Field(Rough):
    """A rough line with an expert, which can be closed, and which cannot begin with some seeds."""

    def reset(self, seed):
        if seed == 5 and self.task == "Line with a hole":
            raise ValueError("there is no episode 5")
        return super().reset(seed)

    def observe(self):
        seen = super().observe()
        return replace(seen, images={name: image + np.uint8(5 * self.x) for name, image in seen.images.items()})

    def close(self):
        self.closed = True


class Expert(Walker):
    """Knows what its own scene was told."""

    cameras, fingerprint = (), "expert"

    def __init__(self, benchmark):
        super().__init__()
        self.benchmark = benchmark

    def reset(self, instruction, seed):
        super().reset(self.benchmark.told, seed)


class Moody(Walker):
    """One episode at a time; of some seeds it cannot begin, of some it answers nonsense, in chunks of many lengths."""

    image_size = 4

    def __init__(self, path):
        super().__init__()
        self.fingerprint = path

    def reset(self, instruction, seed):
        super().reset(instruction, seed)
        self.seed, self.calls = seed, 0
        if seed == 1:
            raise OSError("no mood")

    def act(self, observation):
        self.calls += 1
        actions = np.full((1 + (self.seed + self.calls) % 4, 1), 0.3 * self.direction)
        if self.seed == 4 and self.calls == 3:
            actions[-1] = np.nan
        return ActionChunk(actions=actions, action_space=self.action_space)


def make_policy(path):
    return Moody(path) if path == "moody" else Guided(path)


def jobs(policies=("guided", "moody", "random", "expert"), seeds=SEEDS, **more):
    return [
        Job(arm=policy, task="Line", seed=seed, policy=policy, is_recorded=seed in (2, 3), **more)
        for policy in policies
        for seed in seeds
    ]


def everything():
    return jobs() + [replace(job, arm="shuffled") for job in jobs(("guided",), is_shuffled=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder and the results of episodes that were simulated one at a time."""
    folder = tmp_path_factory.mktemp("alone")
    results = steadily(run(everything(), SETUP, folder, workers=1))
    errors = [(item.arm, item.seed, item.error.split(":")[0]) for item in results if item.error]
    assert errors == [("moody", 1, "OSError"), ("moody", 4, "RolloutError")]
    assert {item.success_at_end for item in results if item.arm == "guided"} == {True, False}
    return folder, results


@pytest.mark.parametrize(("scenes", "workers"), [(3, 1), (2, 2), (16, 1)])
def test_results_and_videos_are_the_same_whatever_the_number_of_scenes(tmp_path, alone, scenes, workers):
    folder, results = alone
    assert steadily(run(everything(), replace(SETUP, scenes=scenes), tmp_path, workers)) == results
    videos = sorted(path.name for path in (folder / "videos").iterdir())
    assert len(videos) == 10
    for name in videos:
        assert (tmp_path / "videos" / name).read_bytes() == (folder / "videos" / name).read_bytes()


def test_the_number_of_scenes_may_change_when_an_evaluation_goes_on(tmp_path, alone):
    run(jobs(("guided",), (0, 2, 3, 6)), SETUP, tmp_path, workers=1)
    before = (tmp_path / "results.jsonl").read_text()
    found = steadily(run(jobs(("guided",)), replace(SETUP, scenes=2), tmp_path, workers=1))
    assert found == [item for item in alone[1] if item.arm == "guided"]
    assert (tmp_path / "results.jsonl").read_text().startswith(before)
    assert len(read_results(tmp_path / "results.jsonl")) == len(SEEDS)


def test_an_episode_that_the_simulator_fails_in_fails_alone(tmp_path, alone):
    wanted = [replace(job, task="Line with a hole") for job in jobs(("guided",))]
    results = steadily(run(wanted, replace(SETUP, scenes=3), tmp_path, workers=1))
    assert results.pop(5).error == "ValueError: there is no episode 5"
    expected = [item for item in alone[1] if item.arm == "guided" and item.seed != 5]
    assert [(item.seed, item.error, item.success_at_end, item.steps) for item in results] == [
        (item.seed, None, item.success_at_end, item.steps) for item in expected
    ]


def test_a_served_policy_gives_the_same_results_in_many_scenes(tmp_path, alone):
    found = run(jobs(("guided",)), replace(SETUP, scenes=3, server_batch=1), tmp_path, workers=2)
    assert steadily(found) == [item for item in alone[1] if item.arm == "guided"]


def test_a_lost_worker_costs_each_of_its_episodes_an_attempt_and_they_begin_together_again(tmp_path, alone):
    setup = replace(SETUP, scenes=3, benchmark_options={"folder": str(tmp_path), "trouble": "is killed:4"})
    results = run(jobs(("guided",)), setup, tmp_path, workers=2)
    assert steadily(results) == [item for item in alone[1] if item.arm == "guided"]
    assert [item.attempts for item in results] == [1, 1, 1, 2, 2, 2, 1]
    assert all("killed by signal 9" in item.faults[0] for item in results[3:6])


def test_an_episode_that_always_kills_its_worker_fails_alone(tmp_path, alone):
    setup = replace(SETUP, scenes=3, benchmark_options={"folder": str(tmp_path), "trouble": "always kills:4"})
    results = run(jobs(("guided",)), setup, tmp_path, workers=1, attempts=3)
    failed = results.pop(4)
    assert failed.error.startswith("none of 3 attempts came to an end")
    assert [item.attempts for item in results] == [1, 1, 1, 3, 3, 1]
    assert steadily(results) == [item for item in alone[1] if item.arm == "guided" and item.seed != 4]


def test_scenes_that_hang_are_killed_and_begun_anew(tmp_path, alone):
    setup = replace(SETUP, scenes=4, benchmark_options={"folder": str(tmp_path), "trouble": "hangs:1"})
    results = run(jobs(("guided",)), setup, tmp_path, workers=1, timeout_s=20.0)
    assert steadily(results) == [item for item in alone[1] if item.arm == "guided"]
    assert [item.attempts for item in results] == [2, 2, 2, 2, 1, 1, 1]


def outcomes(seeds, policies, execution=None, caught=()):
    lines = [Line() for _ in policies]
    starts = [Start(seed) for seed in seeds]
    return lines, rollouts(SeparateSimulators(lines), policies, starts, execution or take(2), caught)


def test_a_broken_action_ends_its_episode_before_it_reaches_the_simulator_and_no_other():
    bad = Walker(actions=[[0.1], [np.nan]])
    lines, ends = outcomes((0, 1, 3), [Walker(), bad, Walker()], caught=(RolloutError,))
    assert ends[0] == rollout(Line(), Walker(), 0, take(2))
    assert ends[2] == rollout(Line(), Walker(), 3, take(2))
    assert isinstance(ends[1], RolloutError)
    assert [len(line.taken) for line in lines] == [10, 0, 10]
    with pytest.raises(RolloutError, match="nan for x"):
        outcomes((0, 1), [Walker(), bad])


def test_an_action_far_out_late_in_a_chunk_ends_its_episode_only_when_its_turn_has_come():
    far = Walker(actions=[[0.5], [0.5], [100.0], [0.5]])
    lines, ends = outcomes((0, 1), [far, Walker()], take(4), caught=(ValueError,))
    assert str(ends[0]).startswith("step 2: the action's x is 100")
    assert lines[0].taken == [0.5, 0.5]
    assert ends[1].success_at_end


def test_scenes_without_an_episode_stay_untouched():
    lines, ends = outcomes((5,), [Walker(), Walker()])
    assert [type(end) for end in ends] == [Outcome]
    assert not hasattr(lines[1], "x")


class Crowd(Walker):
    """Many episodes at once, whose sessions are their seeds; those above 100 it cannot bear."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def start(self, instruction, seed):
        return instruction, seed

    def act_many(self, observations, sessions):
        self.asked.append([seed for _, seed in sessions])
        if any(seed > 100 for _, seed in sessions):
            raise MemoryError("too large a seed")
        chunks = []
        for observation, (instruction, seed) in zip(observations, sessions, strict=True):
            assert observation.proprioception is not None
            direction = -0.4 if instruction == "left" else 0.4
            chunks.append(ActionChunk(actions=np.full((1 + seed % 2, 1), direction), action_space=SPACE))
        return chunks


def test_a_policy_of_many_episodes_is_asked_for_all_that_wait_at_once():
    crowd = Crowd()
    _, ends = outcomes((0, 2, 4), [crowd] * 3)
    assert crowd.asked == [[0, 2, 4]] * 10
    assert all(end.success_at_end for end in ends)
    crowd.asked.clear()
    outcomes((0, 1), [crowd] * 2)
    assert crowd.asked[:4] == [[0, 1], [0], [0, 1], [0]]


def test_an_episode_that_a_policy_fails_on_is_left_out_and_the_others_are_asked_again():
    crowd = Crowd()
    _, ends = outcomes((0, 101, 2), [crowd] * 3, caught=(Exception,))
    assert crowd.asked[:5] == [[0, 101, 2], [0], [101], [2], [0, 2]]
    assert isinstance(ends[1], MemoryError)
    assert ends[0].success_at_end
    assert ends[2].success_at_end
