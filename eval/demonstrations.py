"""Demonstrations: simulate experts with physics alone, then render the wanted instants from any camera."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from core.config import Config
from core.episode import Episode, View
from eval.cameras import view_name
from eval.experts import Expert, Noise
from eval.maniskill import ManiSkillBenchmark
from eval.tasks import EVALUATION_SEEDS_FROM, find_task

ATTEMPTS = 20
AT_REST_M = 0.01
"""An expert that wants to move less than this in a control step has arrived."""

OBJECT_POSE = "object_pose"
"""Column of the pose of the task's object: position (m), quaternion (wxyz)."""
SEEDS_BETWEEN_ATTEMPTS = 100_000
"""A multiple of every number of instructions, so that another attempt is told the same."""


class ExpertSettings(Config):
    """How the experts behave; varied behaviour makes better demonstrations."""

    slowest: float = 0.6
    """Smallest speed, drawn once an episode; 1 commands 0.1 m a control step."""
    fastest: float = 0.75
    """Largest speed."""
    noise_m: float = 0.01
    """Standard deviation of the disturbance of every executed step; recorded actions stay undisturbed."""
    hold_steps: int = 6
    """Control steps that an episode goes on once it has succeeded and the hand rests."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What happened in one episode, without images."""

    task: str
    seed: int
    instruction: str
    states: Float32[np.ndarray, "steps numbers"]
    """Of the simulator, just before each action."""
    actions: Float32[np.ndarray, "steps dims"]
    proprioception: Float32[np.ndarray, "steps dims"]
    is_success: bool
    """At the end, after the hold steps."""
    failures: int = 0
    """Attempts with other seeds that failed before this one."""


def simulate(benchmark: ManiSkillBenchmark, seed: int, settings: ExpertSettings) -> Recording:
    """One attempt of the expert; a pure function of its arguments."""
    random = np.random.default_rng([seed, 1])
    instruction = benchmark.reset(seed)
    expert = Expert(benchmark, seed, random.uniform(settings.slowest, settings.fastest))
    noise = Noise(settings.noise_m, random)
    states, actions, proprioception = [], [], []
    steps_left = benchmark.max_steps
    is_holding = success = False
    while steps_left:
        states.append(benchmark.get_state())
        proprioception.append(benchmark.proprioception())
        intention = expert.decide()
        actions.append(intention.action)
        success = benchmark.step(noise.disturb(intention)).success
        steps_left -= 1
        is_resting = float(np.linalg.norm(intention.action[:3])) < AT_REST_M
        if success and is_resting and not is_holding:
            is_holding, steps_left = True, min(steps_left, settings.hold_steps)
    return Recording(
        task=benchmark.task,
        seed=seed,
        instruction=instruction,
        states=np.stack(states),
        actions=np.stack(actions),
        proprioception=np.stack(proprioception),
        is_success=success,
    )


def simulate_success(benchmark: ManiSkillBenchmark, seed: int, settings: ExpertSettings) -> Recording:
    """The first successful attempt with `seed`, or with seeds that are told the same; never one of evaluation.

    Raises:
        RuntimeError: every attempt failed.
    """
    for failures in range(ATTEMPTS):
        attempt = seed + failures * SEEDS_BETWEEN_ATTEMPTS
        assert attempt < EVALUATION_SEEDS_FROM, f"seed {attempt} belongs to evaluation"
        recording = simulate(benchmark, attempt, settings)
        if recording.is_success:
            return Recording(**(recording.__dict__ | {"failures": failures}))
    raise RuntimeError(
        f"the expert of {benchmark.task} failed {ATTEMPTS} times from seed {seed} on; lower fastest or noise_m"
    )


def render_episode(
    benchmark: ManiSkillBenchmark,
    recording: Recording,
    *,
    frame_stride: int = 1,
    is_labelled: bool = True,
    split: str = "train",
) -> Episode:
    """The recording as an episode seen by the benchmark's cameras at every `frame_stride`-th control step."""
    late = [camera for camera in benchmark.cameras if view_name(camera).kind == "late"]
    delay = frame_stride // 2 if late else 0
    steps = range(0, len(recording.states) - delay, frame_stride)
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in benchmark.cameras}
    extrinsics: dict[str, list[np.ndarray]] = {camera: [] for camera in benchmark.cameras}
    objects = []

    def look(step: int, cameras: list[str]) -> None:
        benchmark.set_state(recording.states[step], recording.seed, step)
        for camera, image in benchmark.render(cameras).items():
            frames[camera].append(image)
            extrinsics[camera].append(benchmark.camera_pose(camera).extrinsics)

    for step in steps:
        look(step, [camera for camera in benchmark.cameras if camera not in late])
        objects.append(benchmark.object_pose(find_task(recording.task).moved_object))
        if late:
            look(step + delay, late)
    kept = slice(steps[-1] + frame_stride)
    return Episode(
        episode_id=f"{recording.task}/seed={recording.seed}",
        task=recording.task,
        instruction=recording.instruction,
        control_hz=benchmark.control_hz / frame_stride,
        views={
            camera: View(frames=np.stack(frames[camera]), extrinsics=np.stack(extrinsics[camera]).astype(np.float32))
            for camera in frames
        },
        actions=benchmark.action_space.over_steps(recording.actions[kept], frame_stride),
        action_space=benchmark.action_space,
        proprioception=recording.proprioception[list(steps)],
        columns={OBJECT_POSE: np.stack(objects)} | benchmark.nuisances.columns(recording.seed, steps),
        is_labelled=is_labelled,
        split=split,
        extra={"seed": recording.seed},
    )
