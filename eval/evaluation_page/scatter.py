"""Where things lay when an episode began, and whether it was solved: a view from above for each thing and arm."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from eval.evaluation_page.evaluation import Evaluation
from eval.evaluation_page.success import Rate, rate
from eval.results import Result, by_arm

SIDE, MARGIN = 300, 34
"""Size of a drawing and of the room for its axes, in its own units."""
MOST_THINGS = 2
"""Things of a task that are shown; the page names the others."""
MOVES_M = 1e-3
"""A thing that starts within so much of one place in all episodes is not shown."""
TICKS = 4
SPREAD = 6
"""Distance of marks that would lie on one another."""


class Mark(NamedTuple):
    """One episode in a drawing."""

    x: float
    y: float
    is_solved: bool
    line: int
    about: str


class Tick(NamedTuple):
    """A place on an axis and its number."""

    at: float
    label: str


class View(NamedTuple):
    """One arm."""

    arm: int
    name: str
    solved: Rate
    marks: list[Mark]


class Scatter(NamedTuple):
    """One thing of one task, on the same axes for all arms."""

    task: str
    thing: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    views: list[View]
    without: int
    """Episodes whose line does not say where it lay."""


def scatters(evaluation: Evaluation) -> list[Scatter]:
    """A drawing for each of the first things that lie elsewhere from episode to episode, task by task."""
    return [
        _scatter(evaluation, task, results, thing)
        for task, results in evaluation.tasks.items()
        for thing in moving_things(results)[:MOST_THINGS]
    ]


def things_left_out(evaluation: Evaluation) -> dict[str, list[str]]:
    """Things that lie elsewhere from episode to episode too and are not shown, by task."""
    left = {task: moving_things(results)[MOST_THINGS:] for task, results in evaluation.tasks.items()}
    return {task: names for task, names in left.items() if names}


def moving_things(results: Sequence[Result]) -> list[str]:
    """Things that lie elsewhere from episode to episode."""
    names = dict.fromkeys(name for result in results for name in result.initial_state)
    return [name for name in names if np.ptp(_places(results, name), axis=0).max() > MOVES_M]


def _places(results: Sequence[Result], thing: str) -> Float[np.ndarray, "episodes 2"]:
    return np.array([result.initial_state[thing][:2] for result in results if thing in result.initial_state])


def _scatter(evaluation: Evaluation, task: str, results: Sequence[Result], thing: str) -> Scatter:
    told = [result for result in results if thing in result.initial_state]
    places = _places(told, thing)
    # One scale for both axes, so that distances are true.
    middle, reach = (places.max(0) + places.min(0)) / 2, max(0.55 * float(np.ptp(places, axis=0).max()), MOVES_M)
    scale = (SIDE - 2 * MARGIN) / (2 * reach)

    def across(x: float) -> float:
        return SIDE / 2 + (x - float(middle[0])) * scale

    def down(y: float) -> float:
        return SIDE / 2 - (y - float(middle[1])) * scale

    def marks(group: Sequence[Result]) -> list[Mark]:
        found, before = [], Counter[tuple[float, float]]()
        for result in group:
            x, y = result.initial_state[thing][:2]
            place = round(across(x), 1), round(down(y), 1)
            aside, below = spread(before[place])
            before[place] += 1
            about = f"seed {result.seed}, x {x:.3f} m, y {y:.3f} m: {'' if result.success_at_end else 'not '}solved"
            line = evaluation.line(result)
            found.append(Mark(place[0] + aside, place[1] + below, result.success_at_end, line, about))
        return found

    order = list(evaluation.arms)
    views = [
        View(order.index(arm), arm, rate(sum(one.success_at_end for one in group), len(group)), marks(group))
        for arm, group in by_arm(told).items()
    ]
    x_ticks = [
        Tick(across(value), _label(value)) for value in ticks(float(middle[0]) - reach, float(middle[0]) + reach)
    ]
    y_ticks = [Tick(down(value), _label(value)) for value in ticks(float(middle[1]) - reach, float(middle[1]) + reach)]
    return Scatter(task, thing, x_ticks, y_ticks, views, len(results) - len(told))


def spread(before: int) -> tuple[float, float]:
    """How far a mark is moved (right, down) so as not to hide the so many marks of the same place."""
    radius, turn = SPREAD * math.sqrt(before), math.pi * (3 - math.sqrt(5))
    return round(radius * math.cos(turn * before), 1), round(radius * math.sin(turn * before), 1)


def _label(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers from low to high, which is more."""
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    return [round(place * step, 9) + 0.0 for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
