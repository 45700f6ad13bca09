"""`compare.json` as tables and as one page with figures."""

from __future__ import annotations

import json
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from circuitlit.compare import LABELS
from circuitlit.report.behaviour import behaviour_table
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.reuse import reuse_sentence, tables
from circuitlit.report.reuse import sections as reuse_sections
from circuitlit.report.simple_page import write_simple_page
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


def print_comparison(result: dict, console: Console) -> None:
    """Print edges, nodes, weights and answers as tables."""
    title = (
        f"{result['task']}: {result['base']['name']} against {result['tuned']['name']}, scored by {result['method']}"
    )
    console.print(_edges_table(result, title))
    console.print(_nodes_table(result["at_size"]))
    weights = result["weights"]
    table = grid("weights", ("where", "relative change", "share of energy"))
    table.add_row("all", f"{weights['relative']:.3g}", f"{percent(weights['unchanged'])} of weights unchanged")
    for kind, share in sorted(weights["distribution"]["kind"]["share"].items(), key=lambda item: -item[1]):
        table.add_row(kind, _relative(weights["parts"], kind), percent(share))
    console.print(table)
    console.print(behaviour_table(result["held_out"], f"answers on {result['held_out']['n_pairs']} held-out pairs"))
    size = result["at_size"]
    verdict = "more" if size["changed"] else "no more"
    console.print(
        f"The circuits differ by {size['distance']:.3f}, {verdict} than resampling does within a model "
        f"(95th percentile {size['floor']:.3f})."
    )
    for table in tables(result):
        console.print(table)
    console.print(overlap_sentence(result["turnover"]))
    if result["reuse"]:
        console.print(reuse_sentence(result["reuse"]))


def _edges_table(result: dict, title: str) -> Table:
    settings = {"same size": result["at_size"], "same faithfulness": result["at_faithfulness"]}
    shown = {name: entry for name, entry in settings.items() if entry}
    table = grid(title, ("edges",), shown)
    sizes = [f"{count(e['n_edges']['base'])} / {count(e['n_edges']['tuned'])}" for e in shown.values()]
    table.add_row("base / tuned circuit", *sizes)
    for label in LABELS[1:]:
        table.add_row(label, *(count(entry["counts"][label]) for entry in shown.values()))
    table.add_row("distance", *(f"{entry['distance']:.3f}" for entry in shown.values()))
    table.add_row("noise floor", *(f"{entry['floor']:.3f}" for entry in shown.values()))
    return table


def _nodes_table(entry: dict) -> Table:
    table = grid("nodes, at the same size", ("mode", "number", "which"))
    for mode, nodes in entry["nodes"].items():
        more = " ..." if len(nodes) > 8 else ""
        table.add_row(mode, str(len(nodes)), " ".join(nodes[:8]) + more)
    return table


def _relative(parts: list[dict], kind: str) -> str:
    """Relative change of all parts of a kind together."""
    own = [part["change"] for part in parts if part["kind"] == kind]
    base = sum(change["base_norm"] ** 2 for change in own)
    return f"{(sum(change['norm'] ** 2 for change in own) / base) ** 0.5:.3g}" if base else "-"


def write_comparison(folder: Path) -> Path:
    """Write `compare.html` from `compare.json`: one file that needs nothing else."""
    result = json.loads((folder / "compare.json").read_text())
    size, held = result["at_size"], result["held_out"]
    rows = "".join(f"<tr><td>{label}<td>{count(size['counts'][label])}" for label in LABELS[1:])
    answers = "".join(
        f"<tr><td>{name}<td>{Metric.of(held[f'{name}_base'])}<td>{Metric.of(held[f'{name}_tuned'])}"
        f"<td>{Metric.of(held[f'{name}_change'])}"
        for name in ("accuracy", "metric")
    )
    verdict = "more" if size["changed"] else "no more"
    lead = (
        f"Circuits of {count(size['n_edges']['base'])} of {count(result['n_edges_total'])} edges, scored by "
        f"{result['method']} on {result['resamples']} resamples of the training pairs. They differ by "
        f"{size['distance']:.3f}, {verdict} than resampling does within a model (95th percentile {size['floor']:.3f})."
    )
    sections: list[tuple[str, go.Figure | str]] = [
        ("Edges", f"<table>{rows}</table>"),
        ("Each edge's share", edge_figure(result)),
        *reuse_sections(result),
        ("Weights", weight_figure(result)),
        (
            f"Answers on {held['n_pairs']} held-out pairs",
            f"<table><tr><th><th>base<th>tuned<th>change{answers}</table>"
            f"<p>p = {held['accuracy_p']:.2g}: {held['gained']} pairs gained, {held['lost']} lost.</p>",
        ),
    ]
    title = f"{result['task']}: {result['base']['name']} against {result['tuned']['name']}"
    return write_simple_page(folder / "compare.html", title, lead, sections)


def edge_figure(result: dict) -> go.Figure:
    """Each edge's share of the circuit's weight before and after, coloured by its label; the diagonal is no change.

    Logarithmic axes have no 0: edges that are in one circuit alone stand on the axis of the other, below all shares.
    """
    points, figure = result["at_size"]["points"], go.Figure()
    outside = min((edge[of] for edge in points for of in ("base", "tuned") if edge[of] > 0), default=1.0) / 3
    for label, colour in COLOURS.items():
        own = [edge for edge in points if edge["label"] == label]
        figure.add_scatter(
            x=[edge["base"] or outside for edge in own],
            y=[edge["tuned"] or outside for edge in own],
            text=[edge["edge"] for edge in own],
            mode="markers",
            name=f"{label} ({len(own)})",
            marker={"color": colour, "size": 6, "opacity": 0.7},
            hovertemplate="%{text}<br>base %{x:.2e}<br>tuned %{y:.2e}<extra></extra>",
        )
    figure.update_xaxes(type="log", title_text="share of base circuit (lowest: not in it)", exponentformat="power")
    figure.update_yaxes(type="log", title_text="share of tuned circuit (lowest: not in it)", exponentformat="power")
    return finish(figure, 520)


def weight_figure(result: dict) -> go.Figure:
    """Relative weight change of each kind of part in each layer."""
    squares: dict[tuple[int, str], list[float]] = {}
    for part in result["weights"]["parts"]:
        if part["layer"] is not None:
            moved, size = squares.setdefault((part["layer"], part["kind"]), [0.0, 0.0])
            change = part["change"]
            squares[part["layer"], part["kind"]] = [moved + change["norm"] ** 2, size + change["base_norm"] ** 2]
    layers = sorted({layer for layer, _ in squares})
    kinds = [kind for kind in KINDS if any(k == kind for _, k in squares)]

    def cell(layer: int, kind: str) -> float | None:
        moved, size = squares.get((layer, kind), (0.0, 0.0))
        return (moved / size) ** 0.5 if size else None

    figure = go.Figure(
        go.Heatmap(
            x=layers,
            y=kinds,
            z=[[cell(layer, kind) for layer in layers] for kind in kinds],
            colorscale="Viridis",
            colorbar={"title": "|dW| / |W|"},
            hovertemplate="layer %{x}, %{y}: %{z:.3g}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="layer")
    return finish(figure, 320)
