"""A policy of a few lines of numpy, and a server of it in a process: python tests/stand_in_server.py JSON."""

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from core.policy import ActionChunk, Observation
from core.run import run_script
from core.spaces import ActionSpace
from eval.serving import serve
from eval.serving_settings import ServingConfig

SPACE = ActionSpace(names=("level", "step", "draw"), units=("m",) * 3, kind="delta_end_effector")


class StandIn:
    """Answers the image's mean, the steps of the episode so far, and a draw; one episode or many."""

    cameras, action_space, fingerprint = ("front",), SPACE, "stand-in"
    horizon, control_hz, image_size, proprioception_dims = 2, 10.0, 224, 3

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []

    def start(self, instruction, seed):
        if not instruction:
            raise ValueError("the instruction is empty")
        return {"draws": np.random.default_rng(seed), "steps": 0, "told": instruction}

    def act_many(self, observations, sessions):
        time.sleep(self.seconds)
        self.batches.append(len(observations))
        levels = [observation.images["front"].mean() for observation in observations]
        return [self._chunk(level, session) for level, session in zip(levels, sessions, strict=True)]

    def _chunk(self, level, session):
        session["steps"] += 1
        rows = np.array([[level, session["steps"], session["draws"].random()]])
        return ActionChunk(actions=np.repeat(rows, self.horizon, axis=0), action_space=SPACE)

    def reset(self, instruction, seed):
        self.session = self.start(instruction, seed)

    def act(self, observation):
        return self.act_many([observation], [self.session])[0]


class OneEpisode:
    """The same policy, which can hold one episode only."""

    cameras, action_space, fingerprint = StandIn.cameras, SPACE, StandIn.fingerprint

    def __init__(self) -> None:
        many = StandIn()
        self.reset, self.act = many.reset, many.act


def picture(level: int, side: int = 8) -> Observation:
    return Observation(images={"front": np.full((side, side, 3), level, np.uint8)}, proprioception=np.zeros(3))


@contextmanager
def server_process(**settings):
    """The process of a server and its address."""
    command = [sys.executable, __file__, json.dumps({"port": 0} | settings)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        said = ""
        while "ws://" not in said:
            line = process.stderr.readline()
            assert line, f"the server ended: {said}"
            said += line
        yield process, re.search(r"ws://\S+", said)[0]
    finally:
        process.kill()
        process.wait()


def main() -> None:
    settings = json.loads(sys.argv[1])
    serve(StandIn(settings.pop("seconds", 0.0)), ServingConfig(**settings))


if __name__ == "__main__":
    sys.path.insert(0, ".")
    run_script(main)
