"""Drawings as SVG that takes its ink from the page, so that light, dark and print all read well."""

import io
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

INK, GRID = "#010203", "#020304"
CSS_COLOURS = {INK: "var(--ink-soft)", GRID: "var(--line)"}
"""Stand-ins that are exchanged for the page's own colours."""


NEEDED = ("jinja2", "matplotlib")


class DrawingError(ValueError):
    """What pages are made with is not installed."""


def require_drawing() -> None:
    """Before the work is done, that it can be shown.

    Raises:
        DrawingError: what pages are made with is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DrawingError(f"the page is made with {' and '.join(missing)}; install: pip install 'mvp-lam[report]'")


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure of this size, in inches, with axes in the page's ink.

    Raises:
        DrawingError: there is no matplotlib.
    """
    require_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def svg(figure: Any, name: str, colours: Mapping[str, str] = CSS_COLOURS) -> str:
    """The drawing of matplotlib as an SVG element without a size of its own.

    Args:
        figure: a matplotlib figure.
        name: keeps its identifiers apart from those of other drawings on the page.
        colours: stand-ins and the colours of the page that they are exchanged for.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(
        r' id="((?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend|Line|Quad|Path)[^"]*)"', "", text
    )
    text = re.sub(r'id="image', f'id="{name}-image', text)
    for stand_in, colour in colours.items():
        text = text.replace(stand_in, colour)
    return text
