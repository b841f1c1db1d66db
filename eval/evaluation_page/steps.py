"""Success against control steps: the share of episodes that have been solved at some time, by the steps they had."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from core.drawing import CSS_COLOURS, new_axes, svg
from eval.evaluation_page.evaluation import Evaluation
from eval.proportions import wilson
from eval.results import Result, by_arm, step_limit

ARM_COLOURS = 8
STAND_INS = [f"#0a0b0{place}" for place in range(ARM_COLOURS)]
COLOURS = CSS_COLOURS | {stand_in: f"var(--arm-{place})" for place, stand_in in enumerate(STAND_INS)}
"""Stand-ins that are exchanged for the page's own colours; arms beyond the eighth are dashed."""


class Curve(NamedTuple):
    """One arm on one task."""

    arm: int
    name: str
    n: int
    solved: int
    """At some time."""
    at_end: int
    median: float | None
    """Step of the first success in the middle one of the solved episodes; None: none was solved."""
    steps: Int[np.ndarray, " times"]
    """0, the steps at which the share changes, and the last one."""
    share: Float[np.ndarray, " times"]
    bounds: Float[np.ndarray, "2 times"]
    """Wilson's 95 % interval at each of the steps."""


class StepsPanel(NamedTuple):
    """One task."""

    task: str
    curves: list[Curve]
    chart: str
    """An SVG element."""
    left_out: list[str]
    """Arms with a solved episode that does not say when it was first solved."""


def steps_panels(evaluation: Evaluation) -> list[StepsPanel]:
    """A panel for each task of which at least one arm says when its episodes were solved."""
    order = list(evaluation.arms)
    panels = []
    for number, (task, results) in enumerate(evaluation.tasks.items()):
        limit = step_limit(results) or max(result.steps for result in results)
        arms = by_arm(results)
        told = {arm: group for arm, group in arms.items() if _says_when(group)}
        if any(result.first_success_step is not None for result in results):
            curves = [_curve(order.index(arm), arm, group, limit) for arm, group in told.items()]
            left_out = [arm for arm in arms if arm not in told]
            panels.append(StepsPanel(task, curves, _chart(curves, limit, f"steps-{number}"), left_out))
    return panels


def _says_when(results: Sequence[Result]) -> bool:
    return all(result.first_success_step is not None for result in results if result.success_at_any_time)


def _curve(arm: int, name: str, results: Sequence[Result], limit: int) -> Curve:
    solved = sorted(step for result in results if (step := result.first_success_step) is not None)
    steps = np.array(sorted({0, limit, *solved}))
    counts = np.searchsorted(solved, steps, side="right")
    bounds = np.array([wilson(int(count), len(results)) for count in counts]).T
    median = float(np.median(solved)) if solved else None
    at_end = sum(result.success_at_end for result in results)
    return Curve(arm, name, len(results), len(solved), at_end, median, steps, counts / len(results), bounds)


def _chart(curves: Sequence[Curve], limit: int, name: str) -> str:
    figure, axes = new_axes(4.6, 2.8)
    for curve in curves:
        colour = STAND_INS[curve.arm % ARM_COLOURS]
        dash = "-" if curve.arm < ARM_COLOURS else "--"
        band = {"step": "post", "color": colour, "alpha": 0.13, "lw": 0, "gid": f"{name}-{curve.arm}"}
        axes.fill_between(curve.steps, *(100 * curve.bounds), **band)
        axes.step(curve.steps, 100 * curve.share, where="post", color=colour, lw=2, ls=dash)
        axes.plot(limit, 100 * curve.at_end / curve.n, "o", color=colour, ms=6, clip_on=False)
    axes.set(xlabel="control steps", ylabel="episodes solved, %", xlim=(0, limit), ylim=(-2, 102))
    return svg(figure, name, COLOURS)
