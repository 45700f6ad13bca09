"""A page of a title, a sentence, and sections of one figure or table each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go

from circuitlit.files import whole

_STYLE = """:root { color-scheme: light dark } body { font: 16px system-ui, sans-serif; max-width: 60rem;
margin: 2rem auto; padding: 0 1rem } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
table { display: block; overflow-x: auto } h1, h2, p, li { overflow-wrap: anywhere }"""


def html_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain texts."""
    head = "".join(f"<th>{escape(heading)}" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def write_simple_page(
    path: Path, title: str, lead: str, sections: Sequence[tuple[str, go.Figure | str]], refresh: int | None = None
) -> Path:
    """Write one file that needs nothing else.

    Args:
        path: of the page.
        title: its heading, plain text.
        lead: what it shows, plain text.
        sections: headings, each with a figure or with HTML.
        refresh: seconds after which the browser loads it again; None for a page that stays.
    """
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">'
    parts, drawn = [], False
    for heading, content in sections:
        if isinstance(content, go.Figure):
            content = content.to_html(
                full_html=False,
                include_plotlyjs=not drawn,
                config={"responsive": True},
                div_id=f"figure-{len(parts)}",  # plotly's own is random, and equal results have equal pages
            )
            drawn = True
        parts.append(f"<h2>{escape(heading)}</h2>{content}")
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">{again}<style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1><p>{escape(lead)}</p>{"".join(parts)}</body></html>"""
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path
