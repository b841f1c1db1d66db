"""Charts of the audit's page, in the page's own ink."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.drawing import GRID, INK, new_axes, svg
from lam.audit.sections.numbers import Table
from lam.show.charts import camera_colour


def interval_chart(table: Table, key: str, label: str) -> str:
    """A quantity of every row as a point with its interval, and its null as a tick."""
    rows = [(name, row[key]) for name, row in table.rows.items() if key in row]
    figure, axes = new_axes(7.2, 0.7 + 0.34 * len(rows))
    for place, (_, number) in enumerate(reversed(rows)):
        axes.plot(number.ci95, [place, place], color=camera_colour(0), lw=2.2, solid_capstyle="butt")
        axes.plot(number.value, place, "o", color=camera_colour(0), ms=6)
        axes.plot(number.null.p95 or number.null.value, place, "|", color=INK, ms=12, mew=1.6)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name, _ in reversed(rows)])
    axes.set(xlabel=label, ylim=(-0.6, len(rows) - 0.4))
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, lw=0.8)
    return svg(figure, f"interval-{key}")


def curve_chart(table: Table, keys: Sequence[str], labels: tuple[str, str], is_log: bool = True) -> str:
    """A line for each row over columns whose keys are numbers, with intervals; dashed at the null."""
    figure, axes = new_axes(7.2, 3.4)
    handles: list[Any] = []
    for place, (name, row) in enumerate(table.rows.items()):
        known = [key for key in keys if key in row]
        if not known:
            continue
        spread = 1.02 ** (place - len(table.rows) / 2)
        x = np.array([float(key) for key in known]) * spread
        y = np.array([row[key].value for key in known])
        bounds = np.array([row[key].ci95 for key in known])
        style = {"color": camera_colour(place), "marker": "o", "ms": 4, "lw": 1.8, "elinewidth": 1.1}
        handles.append(axes.errorbar(x, y, np.abs(bounds.T - y), label=name.replace("_", " "), **style))
    axes.axhline(1.0, color=INK, lw=1, ls=(0, (4, 3)))
    if is_log:
        axes.set_xscale("log")
    ticks = [float(key) for key in keys]
    axes.set_xticks(ticks, [str(key) for key in keys])
    axes.minorticks_off()
    axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
    axes.legend(handles=handles, frameon=False, labelcolor=INK, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return svg(figure, f"curve-{table.key}")
