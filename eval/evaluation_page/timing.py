"""How long episodes took."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eval.evaluation_page.evaluation import Evaluation
from eval.results import Result, by_arm


class Timing(NamedTuple):
    """Episodes of one arm on one task that came to an end; with many at a time each takes longer."""

    arm: int
    name: str
    task: str
    n: int
    seconds: tuple[float, float, float]
    """Wall-clock time of an episode: tenth percentile, median, ninetieth."""
    steps_per_s: float
    """Median."""
    steps: int
    """All control steps."""
    clipped_steps: int
    repeated: int
    """Episodes that were begun more than once."""


def timings(evaluation: Evaluation) -> list[Timing]:
    """By task and arm; nothing for those where every episode ended in an error."""
    order = list(evaluation.arms)
    found = []
    for task, results in evaluation.tasks.items():
        for arm, group in by_arm(results).items():
            ended = [result for result in group if result.error is None]
            if ended:
                found.append(_timing(order.index(arm), arm, task, ended))
    return found


def _timing(position: int, arm: str, task: str, results: Sequence[Result]) -> Timing:
    seconds = np.array([result.seconds for result in results])
    low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    speed = np.median([result.steps / max(result.seconds, 1e-3) for result in results])
    return Timing(
        arm=position,
        name=arm,
        task=task,
        n=len(results),
        seconds=(low, median, high),
        steps_per_s=float(speed),
        steps=sum(result.steps for result in results),
        clipped_steps=sum(result.clipped_steps for result in results),
        repeated=sum(result.attempts > 1 for result in results),
    )
