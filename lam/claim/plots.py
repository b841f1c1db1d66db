"""The pictures of the claim: effects with intervals, arms side by side, the sweep as a map of signs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.significance import PairedEffect
from lam.claim.effects import MEASURES, Contrast, Results

NAMES = {
    "N0": "N0  fixed cameras",
    "N1": "N1  random static cameras",
    "N2": "N2  cameras move independently",
    "N3": "N3  distractor seen by all",
    "N4": "N4  light changes for all",
    "N5": "N5  overlay in each view",
    "N6": "N6  cameras move together",
}
LABELS = {
    "untrained": "untrained (floor)",
    "one_camera": "one camera only",
    "self": "self",
    "self_2x": "self, twice the steps",
    "self_cross": "self + cross (the claim)",
    "cross": "cross only",
    "mismatched": "self + mismatched cross (control)",
    "augmented": "self + cross with an augmented copy",
    "four_views": "self + cross, four cameras",
    "desynchronised": "self + cross, half a step apart",
    "change": "latent of change",
    "change_self": "latent of change, self only",
    "contrast": "self + cross + contrast",
    "change_contrast": "latent of change + contrast (ours)",
    "supervised": "supervised (ceiling)",
}
BLUE, ORANGE, GREY = "#1f5fa8", "#d9731a", "#777777"


def label(arm: str) -> str:
    """What an arm is called in a picture."""
    return LABELS.get(arm, arm.replace("_", " "))


def effects_picture(path: Path, found: Sequence[Contrast]) -> None:
    """What cross-viewpoint reconstruction adds, a row a nuisance: against self alone, and against the control."""
    figure, panels = _panels(len(MEASURES), 5.2, 4.2)
    conditions = list(dict.fromkeys(c.condition for c in found))[::-1]
    styles = {"self": (BLUE, "o", 0.13), "mismatched": (ORANGE, "D", -0.13)}
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for baseline, (colour, marker, shift) in styles.items():
            chosen = [c for c in found if (c.measure, c.treatment, c.baseline) == (measure, "self_cross", baseline)]
            for contrast in chosen:
                row = conditions.index(contrast.condition) + shift
                low, high = contrast.effect.ci95
                axes.plot([low, high], [row, row], color=colour, lw=2)
                axes.plot(contrast.effect.mean, row, marker, color=colour, ms=6)
            axes.plot([], [], marker, color=colour, label=f"self + cross minus {baseline}")
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(conditions)), [NAMES.get(c, c) for c in conditions])
        better = "right is better" if measure == "action_bits" else "left is better"
        axes.set_title(f"{title}: {better}", fontsize=10)
        axes.set_xlabel("difference, bits (95 %)")
        if axes is not panels[0]:
            axes.set_yticklabels([])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _save(figure, path)


def arms_picture(path: Path, results: Results, features: dict[str, float]) -> None:
    """Bits about the action of every arm and seed, a panel a nuisance; the line is what frozen features give."""
    columns = len(results.conditions)
    figure, panels = _panels(columns, 1.4 + 2.5 / columns, 0.28 * len(results.arms) + 1.2)
    arms = results.arms[::-1]
    for axes, condition in zip(panels, results.conditions, strict=True):
        for row, arm in enumerate(arms):
            values = results.values(condition, arm, "action_bits")
            colour = {"self_cross": BLUE, "change_contrast": BLUE, "mismatched": ORANGE}.get(arm, GREY)
            axes.plot(values, np.full(len(values), row), "o", color=colour, ms=3.5, alpha=0.6)
        if condition in features:
            axes.axvline(features[condition], color="black", lw=1, ls=":")
        axes.set_yticks(range(len(arms)), [label(arm) for arm in arms] if axes is panels[0] else [])
        axes.set_title(condition, fontsize=10)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    figure.supxlabel("bits about the action, one dot a seed; dotted: frozen features of both frames", fontsize=9)
    _save(figure, path)


def sweep_picture(path: Path, rows: dict[str, dict[str, PairedEffect]]) -> None:
    """Self + cross minus self in bits about the action, a row a setting: is the sign stable?"""
    conditions = list(dict.fromkeys(c for by in rows.values() for c in by))
    values = np.array([[by[c].mean if c in by else np.nan for c in conditions] for by in rows.values()])
    figure, (axes,) = _panels(1, 1.3 * len(conditions) + 2.6, 0.3 * len(rows) + 1.2)
    extreme = max(1e-3, float(np.nanmax(np.abs(values))))
    image = axes.imshow(values, cmap="RdBu", vmin=-extreme, vmax=extreme, aspect="auto")
    for row, by in enumerate(rows.values()):
        for column, condition in enumerate(conditions):
            if condition in by:
                effect = by[condition]
                text = f"{effect.mean:+.2f}\n{effect.positive}/{effect.seeds} seeds"
                colour = "white" if abs(effect.mean) > 0.6 * extreme else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set_yticks(range(len(rows)), list(rows))
    figure.colorbar(image, ax=axes, label="self + cross minus self, action bits")
    _save(figure, path)


def _panels(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, height), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, list(panels)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white")
