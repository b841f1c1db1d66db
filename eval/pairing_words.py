"""A paired comparison in words for a terminal, and as JSON."""

from typing import Any

from eval.pairing import Contrast, PairedComparison
from eval.proportions import Interval

HEADINGS = ("task", "episodes", "first", "second", "difference", "alone", "p", "Holm p")


def lines_of(comparison: PairedComparison) -> list[str]:
    """What is said of two arms: a table by task, what was left out, and how many episodes would show a difference."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    rows += [_row(task, contrast, f"{comparison.holm[task]:.3g}") for task, contrast in comparison.tasks.items()]
    rows.append(_row("all together", comparison.pooled, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        f"first: {comparison.first}",
        f"second: {comparison.second}",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        "success at the end with 95 % intervals: Wilson's of each, Tango's of the paired difference in points;",
        "alone: episodes that only the first, only the second solved; p: exact McNemar test; adjusted after Holm over",
        "all tasks and arms of this command",
        *_notes(comparison),
        _plan(comparison),
    ]


def as_json(comparison: PairedComparison) -> dict[str, Any]:
    """All numbers of a comparison."""
    tasks = {
        task: _numbers(contrast) | {"holm_p": comparison.holm[task]} for task, contrast in comparison.tasks.items()
    }
    return {
        "first": comparison.first,
        "second": comparison.second,
        "tasks": tasks,
        "pooled": _numbers(comparison.pooled),
        "not_shared": {"first": comparison.only_first, "second": comparison.only_second},
        "errors": dict(zip(("first", "second"), comparison.errors, strict=True)),
        "protocol_recorded": comparison.has_protocol,
        "episodes_needed": comparison.plan._asdict(),
    }


def _row(name: str, contrast: Contrast, holm_p: str) -> tuple[str, ...]:
    n, low, high = contrast.pairs.n, *contrast.tango95
    return (
        name,
        str(n),
        _rate(contrast.first, n, contrast.first_wilson95),
        _rate(contrast.second, n, contrast.second_wilson95),
        f"{100 * contrast.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        f"{contrast.pairs.only_first}, {contrast.pairs.only_second}",
        f"{contrast.p_value:.3g}",
        holm_p,
    )


def _rate(successes: int, n: int, interval: Interval) -> str:
    return f"{successes} = {100 * successes / n:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def _notes(comparison: PairedComparison) -> list[str]:
    notes = [
        f"not shared, left out: {comparison.only_first} episodes of the first, {comparison.only_second} of the second"
    ]
    if any(comparison.errors):
        notes.append(
            f"errors, counted as failures: {comparison.errors[0]} of the first, {comparison.errors[1]} of the second"
        )
    if not comparison.has_protocol:
        notes.append("note: these files record no protocol, so that nothing shows that the conditions were the same")
    return notes


def _plan(comparison: PairedComparison) -> str:
    plan = comparison.plan
    return (
        f"to see a difference of {100 * plan.difference:g} points with 80 % power at p <= 0.05: {plan.paired} paired "
        f"episodes (if one alone solves {100 * plan.discordance:.0f} %), or {plan.unpaired} of each policy unpaired"
    )


def _numbers(contrast: Contrast) -> dict[str, Any]:
    return {
        "episodes": contrast.pairs.n,
        "first": contrast.first,
        "first_wilson95": list(contrast.first_wilson95),
        "second": contrast.second,
        "second_wilson95": list(contrast.second_wilson95),
        "both": contrast.pairs.both,
        "only_first": contrast.pairs.only_first,
        "only_second": contrast.pairs.only_second,
        "neither": contrast.pairs.neither,
        "difference": contrast.difference,
        "tango95": list(contrast.tango95),
        "mcnemar_p": contrast.p_value,
    }
