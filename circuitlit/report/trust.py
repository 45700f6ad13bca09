"""`trust.json` as a table and as one page: a line a claim, its interval against the bar, its state in words."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from circuitlit.evaluate.trust.card import TrustCard
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page

HEADINGS = ("claim", "figure", "value", "bar", "state")


def trust_cells(row: TrustRow) -> tuple[str, ...]:
    """One line: name, figure, value with its interval, bar, state."""
    value = "-" if row.value is None else f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
    bar = "-" if row.bar is None else f"{row.side} {row.bar:g}"
    return row.name, row.figure, value, bar, f"{row.state}: {row.why}" if row.why else row.state


def print_trust(result: TrustCard, console: Console) -> None:
    """Print a line a claim."""
    table = grid(_title(result), HEADINGS)
    for row in result.trust.values():
        table.add_row(*trust_cells(row))
    console.print(table)


def write_trust(result: TrustCard, folder: Path) -> Path:
    """Write `trust.html` into a folder: one file that needs nothing else."""
    lead = (
        f"{result.n_edges:,} edges by {result.method}. There is no grade: each line stands for itself. "
        "The state goes by the 95 % interval; undecided where that straddles the bar."
    )
    table = html_table(HEADINGS, map(trust_cells, result.trust.values()))
    return write_simple_page(folder / "trust.html", _title(result), lead, [("Claims", table)])


def _title(result: TrustCard) -> str:
    return f"{result.task} on {result.model}: how sure is this circuit?"
