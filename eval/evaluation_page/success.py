"""Success by task and arm with intervals, beside published rows; and arms against the first one."""

from collections.abc import Sequence
from typing import NamedTuple

from eval.evaluation_page.evaluation import Evaluation
from eval.pairing import PLANNED_DIFFERENCE, Arm, PairedComparison, compare_arms
from eval.proportions import Interval, wilson
from eval.results import Result, by_arm, step_limit
from eval.simpler import EPISODES
from eval.simpler_table import COLUMNS, PUBLISHED

ALL_TASKS = "all tasks"


class Rate(NamedTuple):
    """A share of episodes."""

    part: int
    n: int
    share: float
    wilson95: Interval


class Row(NamedTuple):
    """What one policy came to on one task."""

    name: str
    arm: int | None
    """Position of the arm, which is its colour; None: a published policy."""
    at_end: Rate | None
    """None for published policies, whose episodes stop at a first success."""
    at_any_time: Rate
    errors: int
    missing: int
    """Episodes that were asked for and have no result."""


class Group(NamedTuple):
    """One task, or all of them together."""

    name: str
    about: str
    rows: list[Row]


def rate(part: int, n: int) -> Rate:
    """A share with Wilson's 95 % interval; n is at least 1."""
    return Rate(part, n, part / n, wilson(part, n))


def groups(evaluation: Evaluation) -> list[Group]:
    """Each task under each arm that was tried on it, and all tasks together where there are several."""
    found = [_group(evaluation, task, [task], _limit(results)) for task, results in evaluation.tasks.items()]
    if len(found) > 1:
        about = "every episode counts once, so a task counts by its episodes"
        found.append(_group(evaluation, ALL_TASKS, list(evaluation.tasks), about))
    return found


def published(tasks: Sequence[str]) -> list[Row]:
    """Published rows of a task of SIMPLER, or of all four; none for others."""
    if not set(tasks) <= set(COLUMNS) or len(tasks) not in (1, len(COLUMNS)):
        return []
    places = [list(COLUMNS).index(task) for task in tasks]
    solved = {
        name: sum(round(EPISODES * percents[place] / 100) for place in places) for name, percents in PUBLISHED.items()
    }
    n = EPISODES * len(tasks)
    return [Row(f"{name}, published", None, None, rate(part, n), 0, 0) for name, part in solved.items()]


def versus_first(evaluation: Evaluation) -> list[PairedComparison]:
    """The first arm against each other one that shares episodes with it."""
    arms = [Arm(name, results) for name, results in evaluation.arms.items()]
    ours = {(result.task, result.seed) for result in arms[0].results}
    others = [arm for arm in arms[1:] if any((result.task, result.seed) in ours for result in arm.results)]
    return compare_arms(arms[0], others, PLANNED_DIFFERENCE) if others else []


def _group(evaluation: Evaluation, name: str, tasks: Sequence[str], about: str) -> Group:
    order = list(evaluation.arms)
    results = [result for result in evaluation.results if result.task in tasks]
    rows = []
    for arm, group in by_arm(results).items():
        missing = sum(evaluation.missing.get((arm, task), 0) for task in tasks)
        rows.append(_row(arm, order.index(arm), group, missing))
    return Group(name, about, [*rows, *published(tasks)])


def _row(name: str, arm: int, results: Sequence[Result], missing: int) -> Row:
    return Row(
        name=name,
        arm=arm,
        at_end=rate(sum(result.success_at_end for result in results), len(results)),
        at_any_time=rate(sum(result.success_at_any_time for result in results), len(results)),
        errors=sum(result.error is not None for result in results),
        missing=missing,
    )


def _limit(results: Sequence[Result]) -> str:
    limit = step_limit(results)
    return f"{limit} steps" if limit else "step limit not recorded"
