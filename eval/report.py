"""The report of a run: one HTML file that needs nothing else, and the numbers as JSON; pure functions of files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from core.html_page import render_page, words
from core.run import write_json
from eval.page.chain import boxes, duration
from eval.page.charts import codebook_chart, label_budget_chart, training_chart
from eval.page.media import choose_recordings, data_url
from eval.page.numbers import (
    FRESH,
    INSTRUCTION_SCENE,
    PRETRAINED,
    headline,
    headline_comparison,
    headline_results,
    label_budget,
    p_words,
    points,
    summary_of,
    task_results,
)
from eval.page.run_files import RunFiles, read_run
from eval.pairing import Contrast, contrast
from eval.results import Result, Summary, summarise

TEMPLATE = Path(__file__).parent / "page" / "report.html"
TRAINING_STAGES = ("lam", "pretrain", "finetune")
ARM_NOTES = {
    "latent_pretrained": "pretrained on latent actions, then fine-tuned",
    "no_pretraining": "same network and demonstrations, fresh weights",
    "shuffled_instruction": "the pretrained policy, told a wrong instruction, judged by the true one",
    "random": "uniformly random actions",
}


class TaskRow(NamedTuple):
    """One task under both policies."""

    task: str
    pretrained: Summary | None
    fresh: Summary | None
    comparison: Contrast | None


def write_report(run_directory: str | Path) -> Path:
    """Write report.html and summary.json into a run directory; answers the path of the page.

    Raises:
        ReportError: there is nothing to report on.
        DrawingError: what the page is made with is not installed.
    """
    run = read_run(run_directory)
    page = run.path / "report.html"
    page.write_text(render(run))
    write_json(run.path / "summary.json", summary_of(run))
    return page


def render(run: RunFiles) -> str:
    """The page as text."""
    values = page_values(run)
    return render_page(TEMPLATE, values, duration=duration, percent=_percent, points=points, p=p_words, words=words)


def page_values(run: RunFiles) -> dict[str, Any]:
    """What the template shows."""
    groups = headline_results(run.results)
    shown = [result for tasks in task_results(run.results).values() for group in tasks.values() for result in group]
    return {
        "headline": headline(run.results),
        "scene": INSTRUCTION_SCENE,
        "boxes": boxes(run),
        "contact_sheet": data_url(run.contact_sheet, "image/png") if run.contact_sheet else None,
        "arms": {arm: summarise(group) for arm, group in groups.items()},
        "arm_notes": ARM_NOTES,
        "comparison": headline_comparison(run.results),
        "shuffled": _against(groups, "shuffled_instruction"),
        "tasks": task_rows(run.results),
        "hardest": hardest(run.results),
        "errors": [result for result in run.results if result.error],
        "episodes": len(run.results),
        "recordings": choose_recordings(shown, run.path / "evaluate"),
        "audit": run.audit,
        "lam": run.summary("lam"),
        "charts": charts(run),
        "seconds_total": summary_of(run)["seconds_total"],
        "manifests": run.manifests,
        "versions": next((manifest["versions"] for manifest in reversed(run.manifests.values())), {}),
    }


def charts(run: RunFiles) -> dict[str, str | None]:
    """The drawings; None where the run holds no numbers for one."""
    drawn: dict[str, str | None] = dict.fromkeys(("budget", "codebook", *TRAINING_STAGES))
    curves = label_budget(run.results)
    if curves:
        arms = {arm: summarise(group).success_at_end for arm, group in headline_results(run.results).items()}
        drawn["budget"] = label_budget_chart(curves, {arm: share for arm, share in arms.items() if arm not in curves})
    histogram = run.summary("lam").get("code_histogram")
    if histogram:
        drawn["codebook"] = codebook_chart(histogram if isinstance(histogram[0], list) else [histogram])
    for stage in TRAINING_STAGES:
        runs = {name: lines for name, lines in run.metrics.items() if name.split("/")[0] == stage}
        if runs:
            drawn[stage] = training_chart(runs)
    return drawn


def task_rows(results: Iterable[Result]) -> list[TaskRow]:
    """Each task under the pretrained and the fresh policy, compared on the seeds they share."""
    by_base = task_results(list(results))
    ours, theirs = by_base.get(PRETRAINED, {}), by_base.get(FRESH, {})
    rows = []
    for task in dict.fromkeys([*ours, *theirs]):
        pretrained, fresh = ours.get(task), theirs.get(task)
        rows.append(
            TaskRow(
                task,
                summarise(pretrained) if pretrained else None,
                summarise(fresh) if fresh else None,
                contrast(pretrained, fresh) if pretrained and fresh else None,
            )
        )
    return rows


def hardest(results: Iterable[Result]) -> list[tuple[str, Summary]]:
    """Tasks, and instructions of the instruction scene, of the pretrained policy; least solved first."""
    groups: dict[str, list[Result]] = {}
    for task, group in task_results(list(results)).get(PRETRAINED, {}).items():
        for result in group:
            name = f"{task}: “{result.instruction}”" if task == INSTRUCTION_SCENE else task
            groups.setdefault(name, []).append(result)
    ranked = [(name, summarise(group)) for name, group in groups.items()]
    return sorted(ranked, key=lambda item: item[1].success_at_end)


def _against(groups: dict[str, list[Result]], arm: str) -> Contrast | None:
    """The pretrained policy against another arm."""
    return contrast(groups[PRETRAINED], groups[arm]) if PRETRAINED in groups and arm in groups else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
