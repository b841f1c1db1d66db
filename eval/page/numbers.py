"""The numbers of the report, and the sentence they amount to: pure functions of results."""

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from eval.page.run_files import RunFiles
from eval.pairing import Contrast, contrast
from eval.results import Result, Summary, by_arm, by_task, summarise

INSTRUCTION_SCENE = "PushCubeDirections"
PRETRAINED, FRESH = "latent_pretrained", "no_pretraining"
LONGEST_START_S = 60.0
SHOWN_ARMS = (PRETRAINED, FRESH, "shuffled_instruction", "random")


class ArmName(NamedTuple):
    """What the name of an arm says: `stock_no_pretraining_25` is base no_pretraining, budget 25, stock."""

    base: str
    budget: int | None
    """Demonstrations it was fine-tuned on, where the name says so."""
    is_stock: bool
    """It was tried on the simulator's own tasks."""


class Headline(NamedTuple):
    """The result in words."""

    title: str
    sentence: str


def parse_arm(name: str) -> ArmName:
    """The parts of an arm's name."""
    found = re.fullmatch(r"(stock_)?(.+?)(?:_(\d+))?", name)
    assert found is not None
    return ArmName(found[2], int(found[3]) if found[3] else None, found[1] is not None)


def headline_results(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results on the instruction scene of each base arm, at its largest label budget."""
    best: dict[str, tuple[int, list[Result]]] = {}
    for arm, group in by_arm(results).items():
        name = parse_arm(arm)
        on_scene = [result for result in group if result.task == INSTRUCTION_SCENE]
        budget = -1 if name.budget is None else name.budget
        if on_scene and not name.is_stock and (name.base not in best or budget > best[name.base][0]):
            best[name.base] = (budget, on_scene)
    known = [base for base in SHOWN_ARMS if base in best]
    return {base: best[base][1] for base in [*known, *(base for base in best if base not in known)]}


def task_results(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Results by base arm and task: the instruction scene at the largest budget, and the stock tasks."""
    tasks = {base: {INSTRUCTION_SCENE: group} for base, group in headline_results(results).items()}
    for arm, group in by_arm(results).items():
        name = parse_arm(arm)
        others = {task: part for task, part in by_task(group).items() if task != INSTRUCTION_SCENE}
        tasks.setdefault(name.base, {}).update(others)
    return {base: groups for base, groups in tasks.items() if groups}


def label_budget(results: Sequence[Result]) -> dict[str, dict[int, Summary]]:
    """Success on the instruction scene by base arm and number of demonstrations."""
    curves: dict[str, dict[int, Summary]] = {}
    for arm, group in by_arm(results).items():
        name = parse_arm(arm)
        on_scene = [result for result in group if result.task == INSTRUCTION_SCENE]
        if name.budget is not None and on_scene and not name.is_stock:
            curves.setdefault(name.base, {})[name.budget] = summarise(on_scene)
    return {base: dict(sorted(curve.items())) for base, curve in curves.items()}


def headline_comparison(results: Sequence[Result]) -> Contrast | None:
    """With against without pretraining, on the instruction scene at the largest budget; None where one is missing."""
    groups = headline_results(results)
    if PRETRAINED not in groups or FRESH not in groups:
        return None
    comparison = contrast(groups[PRETRAINED], groups[FRESH])
    return comparison if comparison.pairs.n else None


def headline(results: Sequence[Result]) -> Headline:
    """The result in one sentence, no stronger than its interval and the exact test."""
    comparison = headline_comparison(results)
    if comparison is None:
        return Headline(
            "The chain has run, but nothing is compared yet",
            f"There are no closed-loop results of both {PRETRAINED} and {FRESH} on {INSTRUCTION_SCENE}.",
        )
    groups = headline_results(results)
    ours, theirs = summarise(groups[PRETRAINED]), summarise(groups[FRESH])
    low, high = comparison.tango95
    is_shown = comparison.p_value < 0.05  # where few pairs differ, the interval alone promises too much
    if is_shown and low > 0:
        title = "Pretraining on latent actions helps"
    elif is_shown and high < 0:
        title = "Pretraining on latent actions hurts here"
    else:
        title = "No difference from pretraining is shown"
    budget = parse_arm(groups[PRETRAINED][0].arm).budget
    condition = f"Fine-tuned on {budget} demonstrations, the" if budget else "The"
    sentence = (
        f"{condition} policy pretrained on the latent actions of action-free video solves {_of(ours)} episodes at the "
        f"end; the same policy without pretraining solves {_of(theirs)}. The difference is "
        f"{points(comparison.difference)} points (95 % interval {points(low)} to {points(high)}; "
        f"exact McNemar test on {comparison.pairs.n} paired seeds, {p_words(comparison.p_value)})."
    )
    return Headline(title, sentence)


def points(difference: float) -> str:
    """A difference of shares in signed percentage points."""
    return f"{100 * difference:+.0f}".replace("-", "\N{MINUS SIGN}")


def p_words(p_value: float) -> str:
    """A p-value to the precision that means something."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def wall_seconds(manifests: Iterable[dict[str, Any]]) -> float:
    """Time that passed while stages ran, side by side or one after another, in seconds.

    Up to a minute between two stages is the start of the next and counts; a longer pause was an interruption.
    """
    ends = [(datetime.fromisoformat(m["finished"]).timestamp(), float(m["seconds"])) for m in manifests]
    total, covered = 0.0, -math.inf
    for start, end in sorted((end - seconds, end) for end, seconds in ends):
        begin = covered if start - covered <= LONGEST_START_S else start
        total += max(0.0, end - max(begin, covered))
        covered = max(covered, end)
    return total


def summary_of(run: RunFiles) -> dict[str, Any]:
    """What summary.json holds."""
    tasks = task_results(run.results)
    headlines = headline_results(run.results)
    lam = {key: value for key, value in run.summary("lam").items() if key != "code_histogram"}
    seconds = {name: float(manifest["seconds"]) for name, manifest in run.manifests.items()}
    return {
        "seconds_total": round(wall_seconds(run.manifests.values()), 2),
        "stages": seconds,
        "lam": lam | ({"audit": run.audit["rows"]} if run.audit else {}),
        "arms": {
            base: _as_json(summarise(headlines.get(base, [])))
            | {"tasks": {task: _as_json(summarise(group)) for task, group in groups.items()}}
            for base, groups in tasks.items()
        },
        "label_budget": {
            base: {str(budget): _as_json(summary) for budget, summary in curve.items()}
            for base, curve in label_budget(run.results).items()
        },
    }


def _of(summary: Summary) -> str:
    solved = round(summary.success_at_end * summary.episodes)
    return f"{100 * summary.success_at_end:.0f} % ({solved} of {summary.episodes})"


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "episodes": summary.episodes,
        "success_at_end": round(summary.success_at_end, 4),
        "success_at_any_time": round(summary.success_at_any_time, 4),
        "wilson95": [round(bound, 4) for bound in summary.wilson95],
    }
