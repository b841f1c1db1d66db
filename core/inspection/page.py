"""The page of an inspection: everything in one file of HTML that needs no network."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from core.html_page import percent, render_page
from core.inspection.charts import dimensions, length_chart
from core.inspection.inspection import Inspection
from core.inspection.problems import LEVELS, MOST_NAMED, Problem
from core.inspection.strips import strips
from core.inspection.values import Values
from core.run import write_text
from core.splits import NAMES
from core.store import Store

TEMPLATE = Path(__file__).with_name("template.html")
MOST_DIMENSIONS, MOST_INSTRUCTIONS, MOST_VIEWS = 64, 30, 12
"""Numbers, instructions and cameras that are shown; the page says how many are left out."""
EVIDENCE = 2
"""Episodes of which a problem of a camera shows pictures."""


def write_page(inspection: Inspection, file: Path, seed: int = 0) -> None:
    """Write the page; the seed decides which episodes it shows."""
    values = page_values(inspection, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, render_page(TEMPLATE, values, number=number, percent=percent, grouped=grouped))


def number(value: float) -> str:
    """`−0.0123`: four digits, with a real minus."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EN DASH}"


def grouped(count: int) -> str:
    """`12 345`, with thin spaces."""
    return f"{count:,}".replace(",", "\N{THIN SPACE}")


def page_values(inspection: Inspection, seed: int) -> dict[str, Any]:
    """All that stands on the page."""
    store = inspection.store
    order = np.random.default_rng(seed).permutation(inspection.looks.episodes).tolist()
    records = list(store.episodes)
    lengths = np.array([record.length for record in records])
    return {
        "name": store.path.resolve().name,
        "store": store,
        "levels": LEVELS,
        "problems": [_shown(one, store) for one in inspection.problems],
        "counts": Counter(one.level for one in inspection.problems),
        "looked_at": len(order),
        "compared": inspection.compared,
        "hours": store.num_frames / store.info.control_hz / 3600,
        "lengths": lengths,
        "length_chart": length_chart(lengths, store.info.control_hz),
        "labelled": sum(record.is_labelled for record in records),
        "views": [_view(store, view, order) for view in list(store.info.views)[:MOST_VIEWS]],
        "views_left_out": list(store.info.views)[MOST_VIEWS:],
        "splits": [_split(store, name) for name in NAMES],
        "actions": _numbers(inspection.actions),
        "senses": _numbers(inspection.senses),
        "space": store.info.action_space,
        **_instructions(Counter(record.instruction.strip() or "(none)" for record in records)),
    }


def _shown(one: Problem, store: Store) -> dict[str, Any]:
    named = one.named(store.episodes, MOST_NAMED)
    evidence = strips(store, one.episodes, one.view, EVIDENCE) if one.view and one.name != "missing_view" else []
    return {"it": one, "named": named, "left": len(one.episodes) - len(named), "evidence": evidence}


def _view(store: Store, view: str, order: list[int]) -> dict[str, Any]:
    episodes = sum(view in record.views for record in store.episodes)
    return {"name": view, "size": store.info.views[view], "episodes": episodes, "strips": strips(store, order, view)}


def _split(store: Store, name: str) -> dict[str, Any]:
    records = store.select(split=name)
    frames = sum(record.length for record in records)
    return {
        "name": name.replace("_", " "),
        "episodes": len(records),
        "share": len(records) / len(store.episodes),
        "frames": frames,
        "hours": frames / store.info.control_hz / 3600,
        "labelled": sum(record.is_labelled for record in records),
        "instructions": len({record.instruction for record in records}),
    }


def _instructions(counts: Counter[str]) -> dict[str, Any]:
    ranked = counts.most_common(MOST_INSTRUCTIONS)
    return {"instructions": ranked, "instructions_in_all": len(counts), "most_said": ranked[0][1] if ranked else 1}


def _numbers(values: Values | None) -> dict[str, Any] | None:
    if values is None or not len(values.episodes):
        return None
    shown = dimensions(values, MOST_DIMENSIONS)
    facts = {"shown": shown, "left_out": len(values.names) - len(shown), "step": values.step}
    return facts | {"episodes": len(values.episodes)}
