"""Charts as SVG that takes its colours and font from the page, so that light, dark and print all read well."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.drawing import CSS_COLOURS, INK, new_axes, svg
from eval.results import Summary

ARM_COLOURS = {
    "latent_pretrained": "#030405",
    "no_pretraining": "#040506",
    "random": "#050607",
    "shuffled_instruction": "#060708",
}
"""Stand-ins that are exchanged for the page's own colours."""
COLOURS = CSS_COLOURS | {
    "#030405": "var(--pretrained)",
    "#040506": "var(--fresh)",
    "#050607": "var(--random)",
    "#060708": "var(--shuffled)",
}
DASHES = {10: (0, (1, 1.5)), 25: (0, (3, 1.5)), 50: (0, (6, 1.5))}


def label_budget_chart(curves: dict[str, dict[int, Summary]], floors: dict[str, float]) -> str:
    """Success at the end by number of demonstrations, with Wilson intervals, over the `floors` of other arms."""
    budgets = sorted({budget for curve in curves.values() for budget in curve})
    figure, axes = new_axes(6.4, 3.3)
    handles: list[Any] = []
    for number, (arm, curve) in enumerate(curves.items()):
        x = np.array([budgets.index(budget) for budget in curve]) + 0.06 * (number - (len(curves) - 1) / 2)
        y = np.array([100 * summary.success_at_end for summary in curve.values()])
        bounds = 100 * np.array([summary.wilson95 for summary in curve.values()])
        errors = np.abs(bounds.T - y)
        colour = ARM_COLOURS.get(arm, INK)
        style = {"color": colour, "marker": "o", "ms": 5, "lw": 2, "elinewidth": 1.4, "label": _words(arm)}
        handles.append(axes.errorbar(x, y, errors, **style))
    for arm, share in floors.items():
        colour = ARM_COLOURS.get(arm, INK)
        handles.append(axes.axhline(100 * share, color=colour, lw=1.4, ls=(0, (4, 3)), label=_words(arm)))
    axes.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    axes.set(xlabel="demonstrations with actions", ylabel="success at the end, %", ylim=(-2, 102))
    axes.spines["bottom"].set_visible(False)
    axes.axhline(0, color=INK, lw=0.8)
    place = {"loc": "upper left", "bbox_to_anchor": (0, 1.22), "ncols": 2}
    axes.legend(handles=handles, frameon=False, labelcolor=INK, **place)
    return svg(figure, "budget", COLOURS)


def training_chart(runs: dict[str, list[dict[str, float]]]) -> str:
    """Loss by step of some runs: training thin, held out strong."""
    figure, axes = new_axes(4.2, 2.7)
    for name, lines in runs.items():
        colour, dash = _run_style(name)
        _line(axes, lines, "loss", color=colour, lw=0.9, alpha=0.45, ls=dash)
        _line(axes, lines, "validation_loss", color=colour, lw=2, ls=dash)
    losses = [line["loss"] for lines in runs.values() for line in lines if line.get("loss", 0) > 0]
    if losses and max(losses) > 8 * min(losses):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss")
    return svg(figure, "-".join(runs), COLOURS)


def codebook_chart(histogram: Sequence[Sequence[int]]) -> str:
    """How often each code is used, most used first, mean over the tokens of a latent action."""
    counts = np.sort(np.atleast_2d(np.asarray(histogram, dtype=float)), axis=-1)[:, ::-1]
    share = 100 * (counts / np.maximum(counts.sum(-1, keepdims=True), 1)).mean(0)
    figure, axes = new_axes(4.2, 2.7)
    axes.bar(np.arange(len(share)), share, width=0.85, color=ARM_COLOURS["latent_pretrained"])
    axes.axhline(100 / len(share), color=INK, lw=1.2, ls=(0, (4, 3)))
    axes.set(xlabel="code, most used first (dashed: all equally often)", ylabel="transitions, %", ylim=(0, None))
    return svg(figure, "codebook", COLOURS)


def _line(axes: Any, lines: list[dict[str, float]], key: str, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _run_style(name: str) -> tuple[str, Any]:
    """Colour by arm, dashes by label budget."""
    arm = next((arm for arm in ARM_COLOURS if arm in name), None)
    budget = re.search(r"_(\d+)$", name)
    return ARM_COLOURS[arm or "latent_pretrained"], DASHES.get(int(budget[1]) if budget else 0, "solid")


def _words(arm: str) -> str:
    return arm.replace("_", " ")
