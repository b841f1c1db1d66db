"""SIMPLER's four WidowX tasks as a table: ours with intervals, beside published rows."""

from collections.abc import Sequence
from pathlib import Path

from core.run import write_text
from eval.proportions import wilson
from eval.results import RESULTS_FILE, Result, by_arm, read_results, require_one_protocol, require_shared_protocol
from eval.simpler import EPISODES, TASKS
from eval.simpler_assets import NOT_OFFICIAL

TABLE_FILE = "simpler.md"
COLUMNS = dict(zip(TASKS, ("stack", "carrot", "spoon", "eggplant"), strict=True))
PUBLISHED = {
    "MVP-LAM": (33.3, 66.7, 66.7, 75.0),
    "UniVLA": (16.7, 20.8, 54.2, 66.7),
    "LAPA": (54.2, 45.8, 70.8, 58.3),
    "OpenVLA": (41.6, 50.0, 37.5, 16.7),
    "pi0": (37.5, 33.3, 29.2, 45.8),
}
"""Percent of 24 episodes a task, in the order of `TASKS`. Source: MVP-LAM, arXiv 2602.03668."""


def write_table(directory: str | Path) -> str:
    """The table of an evaluation, which `directory`/simpler.md then holds too.

    Raises:
        ResultsError: there are no results.
        ProtocolError: an arm's results, or those of two arms on a task, were not got under the same conditions.
    """
    directory = Path(directory)
    table = table_of(read_results(directory / RESULTS_FILE))
    write_text(directory / TABLE_FILE, table)
    return table


def table_of(results: Sequence[Result]) -> str:
    """Successes, percent and 95 % Wilson interval of each arm and task, and what must be known to read them."""
    results = [result for result in results if result.task in COLUMNS]
    require_one_protocol(results)
    require_shared_protocol(results)
    lines = [
        "| | " + " | ".join([*COLUMNS.values(), "all"]) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for arm, group in by_arm(results).items():
        lines += [
            _row(f"{arm}, at any time", group, [result.success_at_any_time for result in group]),
            _row(f"{arm}, at the end", group, [result.success_at_end for result in group]),
        ]
    lines += [_published_row(name, percents) for name, percents in PUBLISHED.items()]
    return "\n".join([*lines, "", *_notes(results)]) + "\n"


def _row(name: str, group: Sequence[Result], successes: Sequence[bool]) -> str:
    counts = []
    for task in COLUMNS:
        judged = [success for result, success in zip(group, successes, strict=True) if result.task == task]
        counts.append((sum(judged), len(judged)))
    return _cells(name, counts)


def _published_row(name: str, percents: Sequence[float]) -> str:
    return _cells(f"{name}, published", [(round(EPISODES * percent / 100), EPISODES) for percent in percents])


def _cells(name: str, counts: Sequence[tuple[int, int]]) -> str:
    everything = (sum(successes for successes, _ in counts), sum(n for _, n in counts))
    return "| " + " | ".join([name, *(_cell(*count) for count in [*counts, everything])]) + " |"


def _cell(successes: int, n: int) -> str:
    if n == 0:
        return "not run"
    low, high = wilson(successes, n)
    return f"{successes}/{n} {100 * successes / n:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _notes(results: Sequence[Result]) -> list[str]:
    said = {str(result.protocol.benchmark["assets"]) for result in results if result.protocol is not None}
    notes = [f"These scores are not official scores: {assets}." for assets in sorted(said) if NOT_OFFICIAL in assets]
    for arm, group in by_arm(results).items():
        if missing := EPISODES * len(COLUMNS) - len(group):
            notes.append(f"{arm}: {missing} of {EPISODES * len(COLUMNS)} episodes were not run.")
        if errors := sum(result.error is not None for result in group):
            notes.append(f"{arm}: {errors} episodes ended with an error and count as failures.")
    notes.append(
        "Published code stops at the first success: compare with success at any time. Intervals: Wilson, 95 %. "
        "Published rows: MVP-LAM, arXiv 2602.03668; their intervals are those of 24 episodes a task."
    )
    return notes
