"""The learned difference of two models as a table and as one page."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.text import Text

from circuitlit.compare.sparse_difference import LearnedDifference
from circuitlit.report.figures import BLUE, GREEN, ORANGE, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric, count

SHOWN = 10
HEADINGS = ("KL (nats)", "base's circuit", "tuned model's circuit")


def print_difference(result: LearnedDifference, console: Console) -> None:
    """Print what each model loses under both circuits, and the edges that differ."""
    table = grid(_title(result), HEADINGS)
    for row in model_rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(overlap_sentence(result.shared), highlight=False)
    console.print(Text(edges_text(result, SHOWN)), soft_wrap=True)


def _title(result: LearnedDifference) -> str:
    return f"{result.task}: circuits of {count(result.n_edges)} edges, {count(result.edges_in_both)} in both"


def model_rows(result: LearnedDifference) -> list[tuple[str, ...]]:
    """Each model under both circuits."""
    models = {"base model": result.base_model, "tuned model": result.tuned_model}
    return [(name, *(str(Metric.of(own[of])) for of in ("base", "tuned"))) for name, own in models.items()]


def edges_text(result: LearnedDifference, most: int) -> str:
    """The edges in the difference mask, with the change of their log-alpha."""
    names = [f"{edge} ({change:+.2f})" for edge, change in result.different.items()]
    if not names:
        return "no difference"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} edges in the difference mask: {', '.join(names[:most])}{more}"


def write_difference(result: LearnedDifference, folder: Path) -> Path:
    """Write `difference.html` into a folder: one file that needs nothing else."""
    sections: list[tuple[str, go.Figure | str]] = [
        ("Each model under both circuits", html_table(HEADINGS, model_rows(result))),
        ("Edges that differ", f"<p>{escape(edges_text(result, 1000))}</p>"),
        ("What the circuits share", f"<p>{escape(overlap_sentence(result.shared))}</p>"),
        ("Training", training_figure(result)),
    ]
    lead = (
        f"{result.base['name']} and {result.tuned['name']}, trained at once. An edge in the difference mask costs "
        f"{result.penalty:g} nats; its change is that of its log-alpha from base to tuned."
    )
    return write_simple_page(folder / "difference.html", _title(result), lead, sections)


def training_figure(result: LearnedDifference) -> go.Figure:
    """Both models' losses, and the expected number of open difference gates."""
    figure = go.Figure()
    for name, colour in (("base", BLUE), ("tuned", ORANGE), ("open", GREEN)):
        own = [row for row in result.history if name in row]
        axis = {"yaxis": "y2"} if name == "open" else {}
        label = "open difference gates" if name == "open" else f"loss of the {name} model"
        x, y = [row["step"] for row in own], [row[name] for row in own]
        figure.add_scatter(x=x, y=y, name=label, line={"color": colour}, **axis)
    figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "open gates", "rangemode": "tozero"})
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="loss", selector={"overlaying": None})
    return finish(figure, 340)
