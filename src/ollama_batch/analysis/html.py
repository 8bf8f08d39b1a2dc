"""Pages that need nothing but themselves: no script, no font, no request to any address."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ollama_batch.errors import MissingExtraError

if TYPE_CHECKING:
    from ollama_batch.analysis.analysis import Analysis
    from ollama_batch.analysis.compare import Comparison


def analysis_page(found: Analysis, *, now: datetime | None = None) -> str:
    """The report of an analysis. Raises MissingExtraError without jinja2."""
    from ollama_batch.analysis.views import analysis_view

    return _rendered("analysis.html.j2", analysis_view(found), now)


def comparison_page(found: Comparison, *, now: datetime | None = None) -> str:
    """The report of a comparison. Raises MissingExtraError without jinja2."""
    from ollama_batch.analysis.compared import comparison_view

    return _rendered("comparison.html.j2", comparison_view(found), now)


def in_frame(found: Analysis | Comparison) -> str:
    """Its page inside of another, a notebook say, each with styles of its own; nothing in it can run.

    Without jinja2 it is the text that a terminal shows.
    """
    try:
        page = found.html()
    except MissingExtraError:
        return f"<pre>{html.escape(str(found))}</pre>"
    return (
        '<iframe sandbox style="width:100%;height:42rem;border:0;border-radius:8px" title="report" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def _rendered(template: str, view: dict[str, Any], now: datetime | None) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as exc:
        raise MissingExtraError(
            'the HTML report needs jinja2: install the extra, pip install ".[report]" in the project\'s '
            "folder (or: pip install jinja2)"
        ) from exc
    environment = Environment(
        loader=PackageLoader("ollama_batch.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(**view, made=made)
