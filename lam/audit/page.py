"""The page of an audit: one file of HTML that needs no other."""

import math
from pathlib import Path
from typing import Any

from core.html_page import render_page, words
from core.run import versions
from lam.audit.bench import Bench
from lam.audit.sections.leakage import SHIFTS
from lam.audit.sections.numbers import Number, Section, Table

TEMPLATE = Path(__file__).with_name("page.html")
PERCENT_KEYS = ("share", "accuracy", "agreement", "commonest", "used", "codes ", "spread")


def render(bench: Bench, sections: list[Section], result: dict[str, Any]) -> str:
    """The page as text."""
    values = {
        "models": bench.manifests,
        "paths": bench.config.lams | ({"": bench.config.lam} if bench.config.lam else {}),
        "findings": result["findings"],
        "sections": sections,
        "facts": result["facts"],
        "action": bench.action,
        "charts": charts({table.key: table for section in sections for table in section.tables}),
        "versions": versions(),
        "config": bench.config,
        "cell": cell,
        "shared_n": shared_n,
        "bars": bars,
    }
    return render_page(TEMPLATE, values, words=words)


def charts(tables: dict[str, Table]) -> dict[str, str]:
    """The drawings, by the key of the table above which they stand."""
    from lam.audit.charts import curve_chart, interval_chart

    drawn = {}
    if "information" in tables:
        label = "bits about the action, 95 % interval; tick: what shuffled actions reach"
        drawn["information"] = interval_chart(tables["information"], "bits", label)
    if "few_labels" in tables and len(tables["few_labels"].columns) > 1:
        table = tables["few_labels"]
        drawn["few_labels"] = curve_chart(table, list(table.columns), ("labelled transitions", "NMSE (dashed: chance)"))
    if "pixel_shift" in tables:
        keys, about = [str(pixels) for pixels in SHIFTS], ("pixels", "distance, real transitions = 1")
        drawn["pixel_shift"] = curve_chart(tables["pixel_shift"], keys, about)
    return drawn


def cell(key: str, number: Number) -> dict[str, str]:
    """A number as it stands in a table: value, interval, null."""
    is_share = any(word in key for word in PERCENT_KEYS)
    null = number.null
    kind = {"permutation": "null", "real transitions": "real"}.get(null.kind, null.kind)
    text = f"{kind} {_text(null.value, is_share)}"
    if null.p95 is not None:
        text += f" (95 %: {_text(null.p95, is_share)})"
    low, high = (_text(bound, is_share) for bound in number.ci95)
    known = all(math.isfinite(bound) for bound in number.ci95)
    interval = f"{low.removesuffix(' %')} to {high}" if known else "no interval"
    about = f"{number.n} samples of {number.episodes} episodes; {null.kind}: {null.value:.4g}"
    return {"value": _text(number.value, is_share), "interval": interval, "null": text, "about": about}


def shared_n(table: Table) -> bool:
    """Whether all numbers of each row rest on the same samples, so that one column can say how many."""
    return all(len({(one.n, one.episodes) for one in row.values()}) == 1 for row in table.rows.values())


def bars(counts: list[int]) -> list[float]:
    """Heights of a histogram, the highest 100."""
    return [100 * count / max(max(counts), 1) for count in counts]


def _text(value: float, is_share: bool) -> str:
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if is_share:
        return f"{100 * value:.0f} %".replace("-", "\N{MINUS SIGN}")
    if float(value).is_integer() and abs(value) < 1000:
        return f"{value:.0f}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"
    text = "0.000" if text == "-0.000" else text
    return text.replace("-", "\N{MINUS SIGN}")
