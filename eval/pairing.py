"""Is one policy better than another? Both on the same initial states, task by task and together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.significance import holm
from eval.proportions import Interval, mcnemar, paired_episodes, paired_interval, unpaired_episodes, wilson
from eval.results import (
    RESULTS_FILE,
    Result,
    by_arm,
    read_results,
    require_one_protocol,
    require_shared_protocol,
)

PLANNED_DIFFERENCE = 0.1
"""Of success rates, that further episodes should show."""


class PairingError(ValueError):
    """Results that cannot be paired."""


class Arm(NamedTuple):
    """What one policy came to."""

    name: str
    """As it was asked for."""
    results: list[Result]


class Pairs(NamedTuple):
    """Outcomes of two arms on the same episodes: success at the end, where an error is a failure."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """Episodes."""
        return sum(self)


class Contrast(NamedTuple):
    """Two arms on the same episodes, first minus second."""

    pairs: Pairs
    first: int
    """Episodes that the first arm solved at the end."""
    first_wilson95: Interval
    second: int
    second_wilson95: Interval
    difference: float
    """Of the success rates."""
    tango95: Interval
    """Of the difference, for paired proportions."""
    p_value: float
    """Exact McNemar test."""


class Plan(NamedTuple):
    """Episodes that show a difference with 80 % power, tested at 5 %."""

    difference: float
    discordance: float
    """Share of episodes that one arm alone solves: what was seen, at least the difference asked for."""
    paired: int
    """Each tried by both policies: exact McNemar test."""
    unpaired: int
    """Of each policy, on initial states of its own, at the mean success seen."""


class PairedComparison(NamedTuple):
    """All that is said of two arms."""

    first: str
    second: str
    tasks: dict[str, Contrast]
    holm: dict[str, float]
    """By task: its p adjusted for all tasks and all arms that the first one was compared with."""
    pooled: Contrast
    """All shared episodes as one table: a task counts by its episodes."""
    only_first: int
    """Episodes that the second arm was not tried on; they are left out."""
    only_second: int
    errors: tuple[int, int]
    """Shared episodes that ended in an error, of each arm; they count as failures."""
    has_protocol: bool
    """Whether the files record the conditions, which were then found to be the same."""
    plan: Plan


def read_arm(source: str) -> Arm:
    """The results of `PATH` or `PATH:ARM`, where PATH is a results file or the directory of an evaluation.

    Raises:
        PairingError: the arm is not there, or several are and none is named.
        ResultsError: there is no such file, or it is not one of results.
    """
    path = source
    while not Path(path).exists() and ":" in path:
        path = path.rpartition(":")[0]
    wanted = source[len(path) + 1 :]
    file = Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)
    arms = by_arm(read_results(file))
    if not arms:
        raise PairingError(f"{file} holds no results; has the evaluation begun?")
    if not wanted and len(arms) == 1:
        return Arm(source, next(iter(arms.values())))
    if wanted not in arms:
        what = f"no arm {wanted!r}" if wanted else f"{len(arms)} arms"
        raise PairingError(f"{file} has {what}; name one of its arms: {', '.join(f'{path}:{arm}' for arm in arms)}")
    return Arm(source, arms[wanted])


def compare_arms(first: Arm, others: Sequence[Arm], difference: float) -> list[PairedComparison]:
    """The first arm against each other one, on the episodes (task and seed) that both have.

    Args:
        first: what the others are subtracted from.
        others: at least one.
        difference: of success rates that further episodes should show.

    Raises:
        PairingError: two arms share no episode.
        ProtocolError: the episodes were not run under the same conditions.
    """
    compared = [_compare(first, other, difference) for other in others]
    p_values = [contrast.p_value for comparison in compared for contrast in comparison.tasks.values()]
    adjusted = iter(holm(p_values))
    return [comparison._replace(holm={task: next(adjusted) for task in comparison.tasks}) for comparison in compared]


def contrast(first: Sequence[Result], second: Sequence[Result]) -> Contrast:
    """Two arms on the episodes that both have, be there none.

    Raises:
        ProtocolError: the episodes were not run under the same conditions.
    """
    return contrast_of(count_pairs(_paired(first, second)))


def contrast_of(pairs: Pairs) -> Contrast:
    """The statistics of one table of outcomes."""
    first, second = pairs.both + pairs.only_first, pairs.both + pairs.only_second
    return Contrast(
        pairs=pairs,
        first=first,
        first_wilson95=wilson(first, pairs.n),
        second=second,
        second_wilson95=wilson(second, pairs.n),
        difference=(first - second) / pairs.n if pairs.n else 0.0,
        tango95=paired_interval(pairs.only_first, pairs.only_second, pairs.n),
        p_value=mcnemar(pairs.only_first, pairs.only_second),
    )


def plan_for(difference: float, contrast: Contrast) -> Plan:
    """How many episodes show a difference, judged by the discordance and the success seen so far.

    Raises:
        ValueError: the difference is 0 or not a share.
    """
    pairs = contrast.pairs
    discordance = max((pairs.only_first + pairs.only_second) / pairs.n, abs(difference))
    mean_success = (contrast.first + contrast.second) / (2 * pairs.n)
    paired = paired_episodes(difference, discordance)
    return Plan(difference, discordance, paired, unpaired_episodes(difference, mean_success))


def _compare(first: Arm, second: Arm, difference: float) -> PairedComparison:
    pairs = _paired(first.results, second.results)
    if not pairs:
        raise PairingError(
            f"{first.name} and {second.name} share no episode ({_extent(first)} against {_extent(second)}); evaluate "
            "both on the same tasks and seeds"
        )
    names = dict.fromkeys(ours.task for ours, _ in pairs)
    tasks = {task: contrast_of(count_pairs([pair for pair in pairs if pair[0].task == task])) for task in names}
    pooled = contrast_of(count_pairs(pairs))
    return PairedComparison(
        first=first.name,
        second=second.name,
        tasks=tasks,
        holm={},
        pooled=pooled,
        only_first=len(first.results) - len(pairs),
        only_second=len(second.results) - len(pairs),
        errors=(sum(a.error is not None for a, _ in pairs), sum(b.error is not None for _, b in pairs)),
        has_protocol=any(a.protocol is not None for a, _ in pairs),
        plan=plan_for(difference, pooled),
    )


def _paired(first: Sequence[Result], second: Sequence[Result]) -> list[tuple[Result, Result]]:
    theirs = {(result.task, result.seed): result for result in second}
    pairs = [(ours, theirs[ours.task, ours.seed]) for ours in first if (ours.task, ours.seed) in theirs]
    ours, others = [a for a, _ in pairs], [b for _, b in pairs]
    require_one_protocol(ours)
    require_one_protocol(others)
    require_shared_protocol([*ours, *others])
    return pairs


def count_pairs(pairs: Sequence[tuple[Result, Result]]) -> Pairs:
    """Outcomes of episodes that two arms both have."""
    outcomes = [(a.success_at_end, b.success_at_end) for a, b in pairs]
    table = [(True, True), (True, False), (False, True), (False, False)]
    return Pairs(*(outcomes.count(outcome) for outcome in table))


def _extent(arm: Arm) -> str:
    seeds = [result.seed for result in arm.results]
    tasks = sorted({result.task for result in arm.results})
    return f"{len(seeds)} episodes of {', '.join(tasks)} on seeds {min(seeds)} to {max(seeds)}"
