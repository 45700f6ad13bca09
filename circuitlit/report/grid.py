"""The look of every table in the terminal: narrow, and nothing is ever cut off."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text


def grid(title: str = "", headings: Iterable[str] = (), numbers: Iterable[str] = ()) -> Table:
    """A table with columns of words, then of numbers; what does not fit into a line goes on in the next."""
    bold = Text(title, "bold") if title else None
    table = Table(title=bold, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, overflow="fold", justify="right")
    return table
