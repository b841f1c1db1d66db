"""Pages of HTML that need no other file: a template of the caller, in the style that all pages share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.drawing import require_drawing


def render_page(template: Path, values: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """The page as text; `{% include "page.css" %}` in the template is the shared style.

    Raises:
        DrawingError: what pages are made with is not installed.
    """
    require_drawing()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template.name).render(values)


def percent(share: float) -> str:
    """`12 %`, with a digit more where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def words(name: str) -> str:
    """A name without underscores."""
    return name.replace("_", " ")
