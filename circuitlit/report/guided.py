"""`guided.json` as a table and as a page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.report.figures import BLUE, GREEN, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import write_simple_page
from circuitlit.report.table import Metric, count

_COLOURS = (BLUE, ORANGE, GREEN, PINK, RED)
_HEAD = ("ranks from", "trained", "score", "minus uniform", "minus random layers", "verdict")


def print_guided(result: dict[str, Any], console: Console) -> None:
    """Print one row a way."""
    title = f"{result['task']} on {result['model']}: {result['score']}, {len(result['settings']['seeds'])} seeds"
    table = grid(title, _HEAD)
    for cells in _rows(result):
        table.add_row(*cells)
    console.print(table)


def write_guided(folder: Path) -> Path:
    """Write `guided.html` from `guided.json`."""
    result = json.loads((folder / "guided.json").read_text())
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) for cells in _rows(result))
    head = "".join(f"<th>{escape(heading)}" for heading in _HEAD)
    lead = (
        f"{result['steps']} steps, seeds {', '.join(map(str, result['settings']['seeds']))}; brackets are 95 % "
        "intervals over held-out pairs and seeds. Circuits were scored on validation pairs."
    )
    sections = [("Score", f"<table><tr>{head}{body}</table>"), ("Ranks by layer", ranks_figure(result))]
    return write_simple_page(folder / "guided.html", f"{result['task']}: where LoRA's ranks go", lead, sections)


def ranks_figure(result: dict[str, Any]) -> go.Figure:
    """Rank of each layer, a line a way."""
    figure = go.Figure()
    for (name, ranks), colour in zip(result["ranks"].items(), _COLOURS, strict=False):
        figure.add_scatter(x=list(range(len(ranks))), y=ranks, mode="lines+markers", name=name, line={"color": colour})
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="rank", rangemode="tozero")
    return finish(figure, 320)


def _rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, way in result["ways"].items():
        minus = {other: Metric.of(way["minus"].get(other)) for other in ("uniform", "random_layers")}
        differences = [str(minus[other]) for other in ("uniform", "random_layers")]
        rows.append(
            [
                name.replace("_", " "),
                f"{count(way['n_trained'])} ({way['of_uniform']:.4f})",
                str(Metric.of(way["score"])),
                *differences,
                _verdict(minus["uniform"]) if name != "uniform" else "",
            ]
        )
    return rows


def _verdict(difference: Metric) -> str:
    if difference.low is not None and difference.low > 0:
        return "better than uniform"
    if difference.high is not None and difference.high < 0:
        return "worse than uniform"
    return "no better than uniform"
