"""A comparison of two models as tables and as one page with figures."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from circuitlit.compare import LABELS
from circuitlit.compare.comparison import CircuitChange, Comparison
from circuitlit.compare.weight_figures import relative_change
from circuitlit.compare.weights import PartChange
from circuitlit.report.behaviour import behaviour_table
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.modes import HEAD, mode_rows
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.reuse import reuse_sentence, tables
from circuitlit.report.reuse import sections as reuse_sections
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric, count, percent

COLOURS = {
    "added": GREEN,
    "removed": RED,
    "strengthened": BLUE,
    "weakened": ORANGE,
    "modified": PINK,
    "reused": "#56b4e9",
    "uncertain": GREY,
}
KINDS = ("q", "k", "v", "o", "mlp", "norm", "bias")


def print_comparison(result: Comparison, console: Console) -> None:
    """Print edges, nodes, weights and answers as tables."""
    console.print(_edges_table(result, f"{_title(result)}, scored by {result.method}"))
    console.print(_nodes_table(result.at_size))
    weights = result.weights
    table = grid("weights", ("where", "relative change", "share of energy"))
    table.add_row("all", _number(weights.relative), f"{percent(weights.unchanged)} of weights unchanged")
    for kind, share in sorted(weights.distribution["kind"].share.items(), key=lambda item: -item[1]):
        own = relative_change(part for part in weights.parts if part.kind == kind)
        table.add_row(kind, _number(own), percent(share))
    console.print(table)
    console.print(behaviour_table(result.held_out, f"answers on {result.held_out.n_pairs} held-out pairs"))
    console.print(_distance(result.at_size, "The circuits"))
    for table in tables(result):
        console.print(table)
    console.print(overlap_sentence(result.turnover))
    if result.reuse:
        console.print(reuse_sentence(result.reuse))
    if result.modes:
        shares = grid(
            "what became of nodes, as shares of those in either circuit; base and tuned on other halves", HEAD
        )
        for cells in mode_rows(result.modes):
            shares.add_row(*cells)
        console.print(shares)


def _title(result: Comparison) -> str:
    return f"{result.task}: {result.base['name']} against {result.tuned['name']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _distance(size: CircuitChange, which: str) -> str:
    verdict = "more" if size.changed else "no more"
    return (
        f"{which} differ by {size.distance:.3f}, {verdict} than resampling does within a model (95th percentile "
        f"{size.floor:.3f})."
    )


def _edges_table(result: Comparison, title: str) -> Table:
    settings = {"same size": result.at_size, "same faithfulness": result.at_faithfulness}
    shown = {name: entry for name, entry in settings.items() if entry}
    table = grid(title, ("edges",), shown)
    sizes = [f"{count(e.n_edges['base'])} / {count(e.n_edges['tuned'])}" for e in shown.values()]
    table.add_row("base / tuned circuit", *sizes)
    for label in LABELS[1:]:
        table.add_row(label, *(count(entry.counts[label]) for entry in shown.values()))
    table.add_row("distance", *(f"{entry.distance:.3f}" for entry in shown.values()))
    table.add_row("noise floor", *(f"{entry.floor:.3f}" for entry in shown.values()))
    return table


def _nodes_table(entry: CircuitChange) -> Table:
    table = grid("nodes, at the same size", ("mode", "number", "which"))
    for mode, nodes in entry.nodes.items():
        more = " ..." if len(nodes) > 8 else ""
        table.add_row(mode, str(len(nodes)), " ".join(nodes[:8]) + more)
    return table


def write_comparison(result: Comparison, folder: Path) -> Path:
    """Write `compare.html` into a folder: one file that needs nothing else."""
    size, answered = result.at_size, result.held_out
    rows = [(label, count(size.counts[label])) for label in LABELS[1:]]
    of = ("base", "tuned", "change")
    answers = [
        (name, *(str(Metric.of(getattr(answered, f"{name}_{one}"))) for one in of)) for name in ("accuracy", "metric")
    ]
    lead = (
        f"Circuits of {count(size.n_edges['base'])} of {count(result.n_edges_total)} edges, scored by {result.method} "
        f"on {result.resamples} resamples of the training pairs. {_distance(size, 'They')}"
    )
    sections: list[tuple[str, go.Figure | str]] = [
        ("Edges", html_table((), rows)),
        ("Each edge's share", edge_figure(result)),
        *reuse_sections(result),
        *([("What became of nodes", html_table(HEAD, mode_rows(result.modes)))] if result.modes else []),
        ("Weights", weight_figure(result)),
        (
            f"Answers on {answered.n_pairs} held-out pairs",
            html_table(("", *of), answers)
            + f"<p>p = {answered.accuracy_p:.2g}: {answered.gained} pairs gained, {answered.lost} lost.</p>",
        ),
    ]
    return write_simple_page(folder / "compare.html", _title(result), lead, sections)


def edge_figure(result: Comparison) -> go.Figure:
    """Each edge's share of the circuit's weight before and after, coloured by its label; the diagonal is no change.

    Logarithmic axes have no 0: edges that are in one circuit alone stand on the axis of the other, below all shares.
    """
    points, figure = result.at_size.points, go.Figure()
    outside = min((share for edge in points for share in (edge.base, edge.tuned) if share > 0), default=1.0) / 3
    for label, colour in COLOURS.items():
        own = [edge for edge in points if edge.label == label]
        figure.add_scatter(
            x=[edge.base or outside for edge in own],
            y=[edge.tuned or outside for edge in own],
            text=[edge.edge for edge in own],
            mode="markers",
            name=f"{label} ({len(own)})",
            marker={"color": colour, "size": 6, "opacity": 0.7},
            hovertemplate="%{text}<br>base %{x:.2e}<br>tuned %{y:.2e}<extra></extra>",
        )
    figure.update_xaxes(type="log", title_text="share of base circuit (lowest: not in it)", exponentformat="power")
    figure.update_yaxes(type="log", title_text="share of tuned circuit (lowest: not in it)", exponentformat="power")
    return finish(figure, 520)


def weight_figure(result: Comparison) -> go.Figure:
    """Relative weight change of each kind of part in each layer."""
    cells: dict[tuple[int, str], list[PartChange]] = {}
    for part in result.weights.parts:
        if part.layer is not None:
            cells.setdefault((part.layer, part.kind), []).append(part)
    layers = sorted({layer for layer, _ in cells})
    kinds = [kind for kind in KINDS if any(k == kind for _, k in cells)]
    figure = go.Figure(
        go.Heatmap(
            x=layers,
            y=kinds,
            z=[[relative_change(cells.get((layer, kind), ())) for layer in layers] for kind in kinds],
            colorscale="Viridis",
            colorbar={"title": "|dW| / |W|"},
            hovertemplate="layer %{x}, %{y}: %{z:.3g}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="layer")
    return finish(figure, 320)
