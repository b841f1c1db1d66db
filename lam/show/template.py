"""The template of the page, and how its numbers are written."""

import math
from pathlib import Path
from typing import Any

from core.html_page import percent, render_page
from lam.show.agreement import Interval
from lam.show.meanings import Direction

TEMPLATE = Path(__file__).with_name("page.html")


def render(values: dict[str, Any]) -> str:
    """The page as text."""
    from lam.show.charts import camera_colour, colour_of_direction, matrix_colour

    colours = {"hue": colour_of_direction, "camera_colour": camera_colour, "shade": matrix_colour}
    return render_page(
        TEMPLATE, values | colours, percent=percent, interval=interval, percents=percents, number=number, arrow=arrow
    )


def number(value: float, form: str = "%.2f") -> str:
    """A dash where there is none."""
    return (form % value).replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EN DASH}"


def interval(bounds: Interval) -> str:
    """`0.12 to 0.34`."""
    return f"{number(bounds.low)} to {number(bounds.high)}" if math.isfinite(bounds.low) else "no interval"


def percents(bounds: Interval) -> str:
    """`12 to 34 %`."""
    if not math.isfinite(bounds.low):
        return "no interval"
    return f"{100 * bounds.low:.0f} to {100 * bounds.high:.0f} %"


def arrow(direction: Direction) -> tuple[float, float]:
    """Where an arrow ends that points the mean's way and is as long as the direction is steady, +y upwards."""
    length = math.hypot(*direction.mean)
    if not direction.moving or not length:
        return 0.0, 0.0
    x, y = direction.mean
    return direction.steadiness * x / length, -direction.steadiness * y / length
