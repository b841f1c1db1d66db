"""An evaluation as a table in Markdown: one row a task, one column an arm."""

from collections.abc import Sequence
from pathlib import Path

from core.run import write_text
from eval.results import (
    RESULTS_FILE,
    Result,
    by_arm,
    by_task,
    read_results,
    require_shared_protocol,
    step_limit,
    summarise,
)

TABLE_FILE = "table.md"


def success_table(results: Sequence[Result]) -> str:
    """Success at the end: solved of tried with Wilson's 95 % interval, and at any time where that is more.

    Raises:
        ProtocolError: results of an arm, or of arms that share a task, were got under different conditions.
    """
    require_shared_protocol(results)
    arms = list(by_arm(results))
    lines = [f"| task | steps | {' | '.join(arms)} |", "|---" * (len(arms) + 2) + "|"]
    for task, group in by_task(results).items():
        of_arm = by_arm(group)
        cells = [_cell(of_arm[arm]) if arm in of_arm else "-" for arm in arms]
        lines.append(f"| {task} | {step_limit(group) or '?'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_success_table(directory: str | Path) -> str:
    """The table of an evaluation, which is also written beside its results."""
    table = success_table(read_results(Path(directory) / RESULTS_FILE))
    write_text(Path(directory) / TABLE_FILE, table)
    return table


def _cell(results: Sequence[Result]) -> str:
    summary = summarise(results)
    low, high = summary.wilson95
    solved = round(summary.success_at_end * summary.episodes)
    cell = f"{solved}/{summary.episodes} [{low:.2f}, {high:.2f}]"
    if summary.success_at_any_time > summary.success_at_end:
        cell += f", at any time {round(summary.success_at_any_time * summary.episodes)}"
    return f"{cell}, errors {summary.errors}" if summary.errors else cell
