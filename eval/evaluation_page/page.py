"""The page of an evaluation: one file of HTML that needs no network, a pure function of the evaluation's files."""

import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.drawing import require_drawing
from core.html_page import percent, render_page
from core.run import write_text
from eval.evaluation_page.conditions import benchmark_conditions, fingerprints, policy_conditions, versions
from eval.evaluation_page.evaluation import Evaluation, read_evaluation
from eval.evaluation_page.gallery import gallery
from eval.evaluation_page.scatter import MARGIN, SIDE, scatters, things_left_out
from eval.evaluation_page.steps import ARM_COLOURS, steps_panels
from eval.evaluation_page.success import ALL_TASKS, groups, versus_first
from eval.evaluation_page.timing import timings
from eval.page.chain import duration
from eval.page.numbers import p_words, points
from eval.results import RESULTS_FILE
from eval.simpler_assets import NOT_OFFICIAL

TEMPLATE = Path(__file__).with_name("page.html")
PAGE_FILE = "evaluation.html"
MOST_NAMED = 3
"""Arms that the title names."""
MOST_ERRORS = 12


def write_evaluation_page(evaluation: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of an evaluation's directory, into it where `out` names no file; answers its path.

    Raises:
        ResultsError: there are no results, or the file is not one of results.
        ProtocolError: the results were not got under the same conditions.
        EvaluationError: there is no result yet.
        DrawingError: what the page is made with is not installed.
    """
    require_drawing()
    page = Path(evaluation) / PAGE_FILE if out is None else Path(out)
    text = render(read_evaluation(evaluation), page.parent)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    return page


def render(evaluation: Evaluation, page_directory: Path) -> str:
    """The page as text; links to files start from its directory."""
    values = page_values(evaluation, page_directory)
    return render_page(TEMPLATE, values, percent=percent, points=points, p=p_words, duration=duration, plural=plural)


def page_values(evaluation: Evaluation, page_directory: Path) -> dict[str, Any]:
    """All that stands on the page; links to files start from its directory."""
    found, arms = groups(evaluation), list(evaluation.arms)
    results = evaluation.results
    overall = {row.name: row for row in found[-1].rows if row.arm is not None}
    comparisons = versus_first(evaluation)
    return {
        "title": title(evaluation),
        "name": evaluation.path.resolve().name,
        "evaluation": evaluation,
        "arms": arms,
        "colours": ARM_COLOURS,
        "overall": overall,
        "groups": found,
        "all_tasks": ALL_TASKS,
        "has_published": any(row.arm is None for group in found for row in group.rows),
        "comparisons": comparisons,
        "not_compared": [arm for arm in arms[1:] if arm not in {one.second for one in comparisons}],
        "steps": steps_panels(evaluation),
        "scatters": scatters(evaluation),
        "things_left_out": things_left_out(evaluation),
        "has_states": any(result.initial_state for result in results),
        "side": SIDE,
        "margin": MARGIN,
        "gallery": gallery(evaluation),
        "timings": timings(evaluation),
        "errors": errors(evaluation),
        "most_errors": MOST_ERRORS,
        "unofficial": unofficial(evaluation),
        "without_protocol": sum(result.protocol is None and result.error is None for result in results),
        "benchmark": benchmark_conditions(evaluation),
        "policy": policy_conditions(evaluation),
        "fingerprints": fingerprints(evaluation),
        "versions": versions(results),
        "results_link": _link(evaluation.path / RESULTS_FILE, page_directory),
        "link": lambda file: _link(evaluation.path / file, page_directory),
        "is_there": lambda file: (evaluation.path / file).is_file(),
    }


def title(evaluation: Evaluation) -> str:
    """What was tried on what."""
    arms, tasks = list(evaluation.arms), list(evaluation.tasks)
    *most, last = arms
    names = f"{', '.join(most)} and {last}" if most else last
    who = names if len(arms) <= MOST_NAMED else f"{len(arms)} policies"
    return f"{who} on {tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}"


def errors(evaluation: Evaluation) -> list[tuple[str, int, int]]:
    """What ended episodes, how many, and the line of the first of them; most frequent first."""
    failed = [result for result in evaluation.results if result.error is not None]
    first = {str(result.error): evaluation.line(result) for result in reversed(failed)}
    return [(text, n, first[text]) for text, n in Counter(str(result.error) for result in failed).most_common()]


def unofficial(evaluation: Evaluation) -> list[str]:
    """What is said of assets that are not the official ones."""
    said = {str(r.protocol.benchmark.get("assets")) for r in evaluation.results if r.protocol is not None}
    return sorted(assets for assets in said if NOT_OFFICIAL in assets)


def plural(count: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{count:,} {noun}{'s' * (count != 1)}".replace(",", "\N{THIN SPACE}")


def _link(file: Path, page_directory: Path) -> str:
    return quote(Path(os.path.relpath(file, page_directory)).as_posix())
