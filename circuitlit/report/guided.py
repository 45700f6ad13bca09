"""A comparison of LoRA's ranks as a table and as a page."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.rank_patterns import BESIDE, RankComparison
from circuitlit.evaluate import Estimate
from circuitlit.report.figures import BLUE, GREEN, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric, count

_COLOURS = (BLUE, ORANGE, GREEN, PINK, RED)
_HEAD = ("ranks from", "trained", "score", "minus uniform", "minus random layers", "verdict")


def print_guided(result: RankComparison, console: Console) -> None:
    """Print one row a way."""
    table = grid(f"{result.task} on {result.model}: {result.score}, {len(result.settings.seeds)} seeds", _HEAD)
    for cells in _rows(result):
        table.add_row(*cells)
    console.print(table)


def write_guided(result: RankComparison, folder: Path) -> Path:
    """Write `guided.html` into a folder."""
    lead = (
        f"{result.steps} steps, seeds {', '.join(map(str, result.settings.seeds))}; brackets are 95 % "
        "intervals over held-out pairs and seeds. Circuits were scored on validation pairs."
    )
    sections = [("Score", html_table(_HEAD, _rows(result))), ("Ranks by layer", ranks_figure(result))]
    return write_simple_page(folder / "guided.html", f"{result.task}: where LoRA's ranks go", lead, sections)


def ranks_figure(result: RankComparison) -> go.Figure:
    """Rank of each layer, a line a way."""
    figure = go.Figure()
    for (name, ranks), colour in zip(result.ranks.items(), _COLOURS, strict=False):
        figure.add_scatter(x=list(range(len(ranks))), y=ranks, mode="lines+markers", name=name, line={"color": colour})
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="rank", rangemode="tozero")
    return finish(figure, 320)


def _rows(result: RankComparison) -> list[list[str]]:
    rows = []
    for name, way in result.ways.items():
        trained = f"{count(way.n_trained)} ({way.of_uniform:.4f})"
        differences = [str(Metric.of(way.minus.get(other))) for other in BESIDE]
        verdict = _verdict(way.minus["uniform"]) if name != "uniform" else ""
        rows.append([name.replace("_", " "), trained, str(Metric.of(way.score)), *differences, verdict])
    return rows


def _verdict(difference: Estimate) -> str:
    if difference.low is not None and difference.low > 0:
        return "better than uniform"
    if difference.high is not None and difference.high < 0:
        return "worse than uniform"
    return "no better than uniform"
