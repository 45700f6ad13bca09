"""A comparison of LoRA's ranks as a table and as a page."""

from __future__ import annotations

import math
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
    seeds = ", ".join(map(str, result.settings.seeds))
    over, verdict = "held-out pairs", "one seed says nothing of others, so there is no verdict"
    if _several(result):
        over, verdict = "held-out pairs and seeds", "verdicts go by it"
    lead = (
        f"{result.steps} steps, seeds {seeds}; brackets are 95 % intervals over {over}, those of differences for all "
        f"ways together. The second one of a difference is for new sentences; {verdict}. Circuits were scored on "
        "validation pairs."
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
        beside = [Metric.of(way.minus.get(other)) for other in BESIDE]
        differences = [f"{metric} {metric.sentences()}".rstrip() for metric in beside]
        verdict = _verdict(way.minus["uniform"], _several(result)) if name != "uniform" else ""
        rows.append([name.replace("_", " "), trained, str(Metric.of(way.score)), *differences, verdict])
    return rows


def _several(result: RankComparison) -> bool:
    return len(set(result.settings.seeds)) > 1


def _verdict(difference: Estimate, several: bool) -> str:
    """By the interval for new sentences where there is one; none without a second seed."""
    if not several:
        return "none: one seed"
    low, high = difference.bounds or (-math.inf, math.inf)
    return "better than uniform" if low > 0 else "worse than uniform" if high < 0 else "no better than uniform"
