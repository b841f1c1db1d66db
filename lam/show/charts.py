"""Charts as SVG that takes its ink from the page, so that light, dark and print all read well."""

import colorsys
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from core.drawing import GRID, INK, svg
from lam.show.history import History
from lam.show.nearest import Plane
from lam.show.sample import Motion

STILL_COLOUR = "#9aa0a6"
CAMERA_COLOURS = ("#1f6fb5", "#c8641b", "#2e9d5f", "#8b5cb8", "#b3382c", "#b59a1f", "#1fa3a3", "#777777")
REVIVED_COLOUR = "#c8641b"


def colour_of_direction(x: float, y: float) -> str:
    """The colour wheel: red along +x, and on with the angle."""
    hue = (np.arctan2(y, x) / (2 * np.pi)) % 1.0
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(float(hue), 0.85, 0.85))


def camera_colour(number: int) -> str:
    """The colour of a camera; they repeat after eight."""
    return CAMERA_COLOURS[number % len(CAMERA_COLOURS)]


def wheel() -> str:
    """The colours of directions."""
    figure = _figure(1.0, 1.0)
    axes = figure.add_axes((0, 0, 1, 1), projection="polar")
    axes.patch.set_visible(False)
    angles = np.arange(72) * 2 * np.pi / 72
    colours = [colour_of_direction(np.cos(angle), np.sin(angle)) for angle in angles]
    axes.bar(angles, np.full(72, 0.4), width=2 * np.pi / 70, bottom=0.6, color=colours, lw=0)
    axes.set_axis_off()
    for text, at in (("+x", 0.0), ("+y", np.pi / 2), ("\N{MINUS SIGN}x", np.pi), ("\N{MINUS SIGN}y", 1.5 * np.pi)):
        axes.text(at, 0.36, text, ha="center", va="center", fontsize=9, color=INK)
    return svg(figure, "wheel")


def direction_chart(plane: Plane, motion: Motion) -> str:
    """Latents on their plane, coloured by where the robot was told to go."""
    figure = _figure(5.0, 4.1)
    axes = figure.add_axes((0.11, 0.12, 0.87, 0.86))
    colours = np.array([colour_of_direction(*xy) for xy in motion.xy])
    colours[~motion.is_moving] = STILL_COLOUR
    _scatter(axes, plane, colours, motion.is_moving)
    return svg(figure, "direction")


def camera_chart(plane: Plane, cameras: Int[np.ndarray, " n"]) -> str:
    """Latents on their plane, coloured by camera."""
    figure = _figure(5.0, 4.1)
    axes = figure.add_axes((0.11, 0.12, 0.87, 0.86))
    colours = np.array([camera_colour(int(camera)) for camera in cameras])
    _scatter(axes, plane, colours, np.ones(len(colours), bool))
    return svg(figure, "camera")


def history_chart(history: History) -> str:
    """Share of each code at each check of the training, a panel a token."""
    tokens = history.counts.shape[1]
    figure = _figure(9.6, 0.5 + 1.15 * tokens)
    panels = figure.subplots(tokens, 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.08, right=0.9, top=0.97, bottom=0.42 / (0.5 + 1.15 * tokens), hspace=0.18)
    top = max(float(history.shares.max()), 1e-6)
    edges = _edges(history.steps)
    for token, axes in enumerate(panels):
        _bare(axes)
        codes = np.arange(history.counts.shape[2] + 1) - 0.5
        drawn = axes.pcolormesh(
            edges, codes, history.shares[:, token].T, cmap="magma", norm=PowerNorm(0.5, 0, top), rasterized=True
        )
        axes.set_ylabel(f"token {token}\ncode", color=INK, fontsize=9)
        axes.set_yticks([0, history.counts.shape[2] - 1])
    panels[-1].set_xlabel("training step", color=INK, fontsize=9)
    bar = figure.colorbar(drawn, ax=list(panels), fraction=0.02, pad=0.02, format=lambda v, _: f"{100 * v:.0f} %")
    bar.ax.tick_params(colors=INK, length=0, labelsize=8)
    bar.outline.set_visible(False)
    return svg(figure, "history")


def perplexity_chart(history: History) -> str:
    """How many codes each token uses in effect, by training step, and how many codes were replaced."""
    figure = _figure(4.8, 3.0)
    axes = figure.add_axes((0.11, 0.16, 0.77, 0.8))
    _bare(axes)
    axes.grid(axis="y", color=GRID, lw=0.8)
    for token, values in enumerate(history.perplexity.T):
        axes.plot(history.steps, values, color=camera_colour(token), lw=1.4)
    codes = history.counts.shape[2]
    axes.axhline(codes, color=INK, lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="training step", ylabel="perplexity", ylim=(0, 1.08 * codes))
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if np.nansum(history.revived) > 0:
        other = axes.twinx()
        _bare(other)
        axes.patch.set_visible(False)
        known = np.isfinite(history.revived)
        other.vlines(history.steps[known], 0, history.revived[known], color=REVIVED_COLOUR, lw=2, alpha=0.5)
        other.set_ylim(0, 3 * float(np.nanmax(history.revived)))
        other.tick_params(colors=REVIVED_COLOUR)
        other.set_ylabel("codes replaced", color=REVIVED_COLOUR, loc="bottom", fontsize=9)
    return svg(figure, "perplexity")


def final_chart(counts: Int[np.ndarray, "tokens codes"]) -> str:
    """How often each code is used on held-out episodes at the end, a panel a token."""
    figure = _figure(4.8, 3.0)
    panels = figure.subplots(len(counts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.16, right=0.98, top=0.97, bottom=0.16, hspace=0.25)
    shares = 100 * counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    for token, axes in enumerate(panels):
        _bare(axes)
        axes.bar(np.arange(counts.shape[1]), shares[token], width=0.85, color=camera_colour(token))
        axes.axhline(100 / counts.shape[1], color=INK, lw=1, ls=(0, (4, 3)))
        text = f"token {token}\nmost {shares[token].max():.0f} %"
        axes.set_ylabel(text, color=INK, fontsize=8, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.set_xlim(-0.6, counts.shape[1] - 0.4)
    panels[-1].set_xlabel("code", color=INK, fontsize=9)
    return svg(figure, "final")


def matrix_colour(value: float) -> str:
    """Background of a cell: white at 0 and below, darker towards 1."""
    if not np.isfinite(value):
        return "transparent"
    red, green, blue, _ = colormaps["Blues"](0.75 * min(max(value, 0.0), 1.0))
    return f"rgb({round(255 * red)} {round(255 * green)} {round(255 * blue)})"


def _scatter(axes: Any, plane: Plane, colours: np.ndarray, is_strong: np.ndarray) -> None:
    """Weak points first, so that strong ones lie on top; within each in the order of a fixed shuffle."""
    _bare(axes)
    order = np.random.default_rng(0).permutation(len(colours))
    order = order[np.argsort(is_strong[order], kind="stable")]
    size = float(np.clip(9000 / max(len(order), 1), 4, 24))
    style = {"s": size, "c": colours[order], "lw": 0, "alpha": 0.8, "rasterized": True}
    axes.scatter(*plane.points[order].T, **style)
    for name, share, label in zip("xy", plane.explained, ("first", "second"), strict=True):
        text = f"{label} principal component, {100 * share:.0f} % of the variance"
        getattr(axes, f"set_{name}label")(text, color=INK, fontsize=9)


def _edges(steps: Int[np.ndarray, " checks"]) -> Float[np.ndarray, " edges"]:
    """Where the columns of a heat map begin and end: each check tells of the steps since the one before."""
    first = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else steps[0])
    return np.concatenate([[max(first, 0)], steps]).astype(float)


def _figure(width: float, height: float) -> Any:
    figure = Figure(figsize=(width, height), dpi=150)
    figure.patch.set_visible(False)
    return figure


def _bare(axes: Any) -> None:
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.set_axisbelow(True)
