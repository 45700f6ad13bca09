"""The trust card: a line a claim, its interval drawn against the bar, its state in words; page, terminal and W&B."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from rich.console import Console

from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import write_simple_page

if TYPE_CHECKING:
    from circuitlit.evaluate.trust.card import TrustCard

HEADINGS = ("claim", "figure", "value", "bar", "state")
LOGGED = ("value", "low", "high", "bar", "state", "p")
WIDTH, HEIGHT = 160, 18  # of an interval's picture, pixels


def rows_of(content: Mapping[str, Any] | None) -> list[TrustRow]:
    """The rows under `trust` of a result's file; keys that a row does not know are of another version, and left out."""
    known = TrustRow.__dataclass_fields__
    return [TrustRow(**{key: value for key, value in row.items() if key in known}) for row in (content or {}).values()]


def trust_cells(row: TrustRow) -> tuple[str, ...]:
    """One line: name, figure, value with its interval if it has one, bar, state."""
    value = "-" if row.value is None else f"{row.value:.3f}"
    if row.value is not None and row.low != row.high:
        value += f" [{row.low:.3f}, {row.high:.3f}]"
    bar = "-" if row.bar is None else f"{row.side} {row.bar:.4g}" + (f" of {row.around:g}" if row.around else "")
    why = row.why.removeprefix("not measurable: ")
    return row.name, row.figure, value, bar, f"{row.state}: {why}" if why else row.state


def measured_on(row: TrustRow) -> str:
    """The pairs and sentences that a line stands on; empty where nobody counted."""
    if row.pairs is None:
        return ""
    return f"{row.pairs:,} pairs" + ("" if row.groups is None else f" of {row.groups:,} sentences")


def interval_picture(row: TrustRow) -> str:
    """SVG of the interval, the value as a dot and the bar as a stroke, or two strokes; empty where nothing is known."""
    if row.value is None or row.low is None or row.high is None:
        return ""
    bars = [] if row.bar is None else [row.bar]
    if row.bar is not None and row.side == "within":
        bars = [row.around - row.bar, row.around + row.bar]
    ends = [row.low, row.high, row.value, *bars]
    least, span = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float) -> str:
        return f"{4 + (WIDTH - 8) * (value - least) / span:.1f}"

    middle = HEIGHT / 2
    strokes = "".join(f'<path d="M{x(bar)} 1V{HEIGHT - 1}" stroke-dasharray="3 2"/>' for bar in bars)
    said = escape(", ".join(trust_cells(row)[2:]), quote=True)
    return (
        f'<svg role="img" aria-label="{said}" width="{WIDTH}" height="{HEIGHT}" fill="currentColor" '
        f'stroke="currentColor" stroke-width="1.5">{strokes}<path d="M{x(row.low)} {middle}H{x(row.high)}" '
        f'stroke-width="3"/><circle cx="{x(row.value)}" cy="{middle}" r="3.5"/></svg>'
    )


def trust_table(rows: Iterable[TrustRow]) -> Markup:
    """HTML with a line a claim."""
    headings = (*HEADINGS[:3], "interval and bar", HEADINGS[3], "measured on", HEADINGS[4])
    head = "".join(f'<th class="text" scope="col">{heading}' for heading in headings)
    lines = []
    for row in rows:
        name, figure, value, bar, state = (escape(cell) for cell in trust_cells(row))
        cells = [figure, value, interval_picture(row), bar, measured_on(row), state]
        texts = "".join(f'<td class="text" style="white-space: normal">{cell}' for cell in cells)
        broken = name.replace(".", ".<wbr>").replace("_", "_<wbr>")
        lines.append(f'<tr><th class="text" scope="row" style="white-space: normal">{broken}{texts}')
    return Markup(f'<table class="wide"><thead><tr>{head}</thead><tbody>{"".join(lines)}</tbody></table>')


def print_trust(result: TrustCard, console: Console) -> None:
    """Print a line a claim."""
    table = grid(_title(result), HEADINGS)
    for row in result.trust.values():
        name, figure, *rest = trust_cells(row)
        table.add_row(name, "; ".join(filter(None, (figure, measured_on(row)))), *rest)
    console.print(table)


def write_trust(result: TrustCard, folder: Path) -> Path:
    """Write `trust.html` into a folder: one file that needs nothing else."""
    lead = (
        f"{result.n_edges:,} edges by {result.method}. There is no grade: each line stands for itself. "
        "The state goes by the interval, of 95 % where nothing else is said; undecided where that straddles the bar. "
        "Pairs are held-out ones of the task, some of them drawn for the card alone, so that figures differ a little "
        "from those of the run that found the circuit."
    )
    table = str(trust_table(result.trust.values()))
    return write_simple_page(folder / "trust.html", _title(result), lead, [("Claims", table)])


def logged(rows: Iterable[TrustRow]) -> dict[str, Any]:
    """The rows as W&B's summary has them, under the keys of the file."""
    found = {f"trust.{row.name}.{key}": getattr(row, key) for row in rows for key in LOGGED}
    return {key: value for key, value in found.items() if value is not None}


def _title(result: TrustCard) -> str:
    return f"{result.task} on {result.model}: how sure is this circuit?"
