"""The page of the downstream experiment: success by number of demonstrations, differences, what follows from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.config import Config
from core.drawing import require_drawing
from core.run import say, write_json, write_text
from core.significance import smallest_p
from eval.downstream import (
    PRIMARY,
    SECONDARY,
    Contrast,
    Evaluations,
    Success,
    contrasts,
    gather,
    lines_of,
    read_evaluations,
    successes,
)
from eval.proportions import Interval

LABELS = {
    "supervised": "supervised (ceiling)",
    "self_cross": "self + cross (the claim)",
    "self": "self",
    "shuffled": "shuffled (negative control)",
    "none": "no pretraining",
}
STYLES = {
    "supervised": ("#4c9f70", "^", "-"),
    "self_cross": ("#1f5fa8", "o", "-"),
    "self": ("#d9731a", "s", "-"),
    "shuffled": ("#777777", "x", "--"),
    "none": ("#000000", "D", ":"),
}
DRAWN = (*PRIMARY, ("self_cross", "shuffled"), ("self_cross", "none"), ("shuffled", "none"))
"""Differences in the picture; all are in the table."""


class DownstreamConfig(Config):
    """A run of scripts/settle_downstream.py."""

    out: str
    """Directory of results.jsonl, effects.json, success.png and README.md."""
    runs: str = ""
    """Directory whose seed_N/evaluate_DEMONSTRATIONS are added to results.jsonl; empty: what is there is shown."""


def settle(config: DownstreamConfig) -> None:
    """Gather what was evaluated and write the page."""
    require_drawing()
    out = Path(config.out)
    records = read_evaluations(out / "results.jsonl") + (gather(Path(config.runs)) if config.runs else [])
    evaluations = Evaluations(records)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "results.jsonl", lines_of(records))
    found = successes(evaluations)
    primary, secondary = contrasts(evaluations, PRIMARY), contrasts(evaluations, SECONDARY)
    effects = {
        "success": [one._asdict() for one in found],
        "primary": [one._asdict() for one in primary],
        "secondary": [one._asdict() for one in secondary],
        "missing": evaluations.missing(),
    }
    write_json(out / "effects.json", effects)
    picture(out / "success.png", found, primary + secondary)
    write_text(out / "README.md", page(evaluations, found, primary, secondary))
    say(f"settle_downstream: {out / 'README.md'}")


def page(
    evaluations: Evaluations, found: Sequence[Success], primary: Sequence[Contrast], secondary: Sequence[Contrast]
) -> str:
    """README.md."""
    seeds, errors = len(evaluations.training_seeds), sum(record.errors for record in evaluations.records.values())
    lines = [
        "# Does the latent action model matter for the policy?",
        "",
        "Made by `bash scripts/settle_downstream.sh`; what was fixed before the run stands in "
        "[docs/downstream.md](../../downstream.md), what every policy came to in `results.jsonl` beside this page, "
        f"every number below in `effects.json`. {seeds} training seed{'s' * (seeds > 1)}, all policies tried on the "
        f"same {evaluations.states} initial states; success is counted at the last step. "
        + (f"With {seeds} seeds the smallest p is {smallest_p(seeds):.2g}. " if seeds > 1 else "")
        + (f"{errors} rollouts ended in an error and count as failures. " if errors else ""),
        "",
        *missing_sentence(evaluations),
        conclusion(evaluations, [*primary, *secondary]),
        "",
        "![Success by number of demonstrations](success.png)",
        "",
        "Bands and bars are 95 % intervals over training seeds and initial states. Bands of two arms may overlap where "
        "their difference is clear, because both were tried on the same states (right).",
        "",
        *success_table(evaluations, found),
        "",
        *contrast_table(primary, secondary),
        "",
    ]
    return "\n".join(lines)


def missing_sentence(evaluations: Evaluations) -> list[str]:
    """What the design asks for and was not evaluated; nothing where it is complete."""
    missing = evaluations.missing()
    if not missing:
        return []
    return [f"**Not complete:** missing are {'; '.join(missing)}. Differences use the seeds that both arms have.", ""]


def conclusion(evaluations: Evaluations, found: Sequence[Contrast]) -> str:
    """What follows from the intervals, by the rules of docs/downstream.md."""

    def of(treatment: str, baseline: str) -> list[Contrast]:
        return [c for c in found if (c.treatment, c.baseline) == (treatment, baseline)]

    def where(treatment: str, baseline: str, sign: int = 1) -> list[int]:
        return [c.demonstrations for c in of(treatment, baseline) if c.is_beyond(sign)]

    def beats(treatment: str, baseline: str, said: str) -> str:
        return f"{said} with {listed(where(treatment, baseline))}" if of(treatment, baseline) else f"{said}: not tried"

    primary, fails = of(*PRIMARY[0]), where("shuffled", "none")
    above, specific = where(*PRIMARY[0]), where("self_cross", "shuffled")
    holds = [budget for budget in above if budget in specific and budget not in fails]
    by_budget = ", ".join(f"{points(c.difference, c.ci95)} with {c.demonstrations}" for c in primary)
    parts = [
        f"Pretraining on labels of self + cross instead of self changes success by {by_budget} demonstrations (points, "
        f"95 %): more with {listed(above)}, fewer with {listed(where(*PRIMARY[0], -1))}, undecided elsewhere. "
        if primary
        else "Self + cross and self were not tried side by side, so the primary question has no answer. ",
        "By intervals that exclude zero, labels of self + cross beat "
        f"{beats('self_cross', 'shuffled', 'the same labels shuffled')} and "
        f"{beats('self_cross', 'none', 'no pretraining')}; "
        f"{beats('supervised', 'self_cross', 'supervised labels (the ceiling) beat them')}, "
        f"{beats('supervised', 'shuffled', 'and shuffled labels')}. ",
        _control(of("shuffled", "none")),
        _sensitivity(of("supervised", "shuffled")),
    ]
    if primary and len(evaluations.training_seeds) > 1:
        verdict = (
            f"holds for the policy with {listed(holds)} demonstrations"
            if holds
            else "does not hold for the policy with any number of demonstrations tried"
        )
        parts.append(f"By the rules fixed beforehand, the claim {verdict}.")
    if len(evaluations.training_seeds) == 1:
        parts.append(
            " With one training seed all intervals are over initial states alone and speak of these policies, not of "
            "their arms: trainings that differ in their seed only differ by more."
        )
    return "".join(parts)


def _control(found: Sequence[Contrast]) -> str:
    fails = [c.demonstrations for c in found if c.is_beyond(1)]
    if not found:
        return "The negative control was not tried. "
    if fails:
        return (
            f"The negative control does not do what it must: shuffled labels beat no pretraining with {listed(fails)}. "
        )
    return "The negative control does what it must: shuffled labels do not beat no pretraining. "


def _sensitivity(found: Sequence[Contrast]) -> str:
    blind = [c.demonstrations for c in found if not c.is_beyond(1)]
    if not blind:
        return ""
    return (
        f"With {listed(blind)} demonstrations not even supervised labels are seen to beat shuffled ones, so an effect "
        "of labels could not be seen there. "
    )


def success_table(evaluations: Evaluations, found: Sequence[Success]) -> list[str]:
    """Markdown rows of success by arm and number of demonstrations."""
    budgets = evaluations.budgets
    cells = {(one.arm, one.demonstrations): f"{percent(one.success, one.ci95)}, n {one.rollouts}" for one in found}
    rows = ["| labels | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---|" * len(budgets)]
    rows += [
        f"| {LABELS[arm]} | " + " | ".join(cells.get((arm, budget), "") for budget in budgets) + " |"
        for arm in LABELS
        if arm in evaluations.arms
    ]
    return rows


def contrast_table(primary: Sequence[Contrast], secondary: Sequence[Contrast]) -> list[str]:
    """Markdown rows of differences, with the family that p was adjusted in."""
    rows = [
        "| difference | demonstrations | points (95 %) | seeds above 0 | p | p (Holm) | family |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, chosen in (("primary", primary), ("secondary", secondary)):
        rows += [
            f"| {c.treatment} minus {c.baseline} | {c.demonstrations} | {points(c.difference, c.ci95)} | "
            f"{c.positive}/{c.seeds} | {c.p:.3f} | {c.p_holm:.3f} | {family} |"
            for c in chosen
        ]
    tests = sorted({c.test for c in (*primary, *secondary)})
    return [*rows, "", f"Test: {'; '.join(tests)}."]


def picture(path: Path, found: Sequence[Success], differences: Sequence[Contrast]) -> None:
    """Success by number of demonstrations, a curve an arm, and beside it the differences that matter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    budgets = sorted({one.demonstrations for one in found})
    for number, (arm, label) in enumerate(LABELS.items()):
        chosen = [one for one in found if one.arm == arm]
        if chosen:
            colour, marker, line = STYLES[arm]
            _curve(left, budgets, chosen, (number - 2) * 0.04, dict(color=colour, marker=marker, ls=line, label=label))
    left.set_ylabel("success at the end, %")
    left.set_ylim(bottom=0)
    for number, (treatment, baseline) in enumerate(DRAWN):
        chosen_pairs = [c for c in differences if (c.treatment, c.baseline) == (treatment, baseline)]
        colour = STYLES[baseline][0] if treatment == "self_cross" else "#b03060"
        for c in chosen_pairs:
            at = budgets.index(c.demonstrations) + (number - 1.5) * 0.14
            right.plot([at, at], 100 * np.array(c.ci95), color=colour, lw=2)
            right.plot(at, 100 * c.difference, STYLES[baseline][1] if treatment == "self_cross" else "v", color=colour)
        name = f"{treatment} minus {baseline}".replace("self_cross", "self + cross")
        right.plot([], [], marker=STYLES[baseline][1] if treatment == "self_cross" else "v", color=colour, label=name)
    right.axhline(0, color="black", lw=0.8)
    right.set_ylabel("difference, points (95 %)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(range(len(budgets)), budgets)
        axes.set_xlim(-0.5, len(budgets) - 0.5)
        axes.set_xlabel("labelled demonstrations")
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(path, dpi=150, facecolor="white")


def _curve(axes: Any, budgets: list[int], chosen: Sequence[Success], shift: float, style: dict[str, Any]) -> None:
    at = np.array([budgets.index(one.demonstrations) for one in chosen]) + shift
    means = 100 * np.array([one.success for one in chosen])
    low, high = 100 * np.array([one.ci95 for one in chosen]).T
    axes.plot(at, means, lw=2, ms=6, **style)
    axes.fill_between(at, low, high, color=style["color"], alpha=0.1, lw=0)
    axes.vlines(at, low, high, color=style["color"], lw=1)


def points(difference: float, interval: Interval) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * difference:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def percent(share: float, interval: Interval) -> str:
    """A share in percent."""
    return f"{100 * share:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def listed(budgets: Sequence[int]) -> str:
    """Numbers of demonstrations, in words."""
    *most, last = map(str, budgets) if budgets else ["none"]
    return f"{', '.join(most)} and {last}" if most else last
