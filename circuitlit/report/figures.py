"""Figures of training and of the circuit's layers; colours and paper suit light and dark pages alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitlit.graph import Graph
from circuitlit.report.edges import RankedEdge
from circuitlit.report.table import Metric

# The colour-blind-safe palette of seaborn, without the greys.
BLUE, ORANGE, GREEN, RED, PINK = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
GREY, SKY = "#8a909c", "#56b4e9"
# Viridis without its darkest and lightest ends, which vanish on a dark or a light page.
SCALE = ["#3b6aa0", "#21918c", "#5ec962", "#e3d91c"]
_SMOOTHED_OVER = 20  # the running mean spans a twentieth of the steps


def finish(figure: go.Figure, height: int) -> go.Figure:
    """What all figures share: transparent, no drag so that a finger scrolls the page, axes that make room."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 34, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        dragmode=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True, zeroline=False, title_standoff=8)
    figure.update_yaxes(automargin=True, zeroline=False, title_standoff=8)
    return figure


def error_bars(metrics: Sequence[Metric]) -> dict[str, Any]:
    """Bars from low to high around the values; none where there is no interval."""
    values = [metric.value or 0.0 for metric in metrics]
    return {
        "type": "data",
        "symmetric": False,
        "array": [(m.high or v) - v for m, v in zip(metrics, values, strict=True)],
        "arrayminus": [v - (m.low or v) for m, v in zip(metrics, values, strict=True)],
    }


def training_figure(history: dict) -> go.Figure | None:
    """Loss and validation KL above, shares below, over optimizer steps; None where nothing was recorded."""
    loss, hard_kl = series(history, "loss"), series(history, "hard_kl")
    sparsity, undecided = series(history, "sparsity"), series(history, "undecided")
    if not any(steps for steps, _ in (loss, hard_kl, sparsity, undecided)):
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    _line(figure, 1, loss, "loss, each step", {"color": BLUE, "width": 0.8}, opacity=0.45)
    _line(figure, 1, (loss[0], smooth(loss[1])), "loss, running mean", {"color": BLUE, "width": 2.4})
    points = {"mode": "markers+lines", "marker": {"size": 8, "symbol": "diamond"}}
    _line(figure, 1, hard_kl, "KL of the exact-count circuit, validation", {"color": RED, "width": 1}, **points)
    _line(figure, 2, sparsity, "sparsity", {"color": GREEN, "width": 2})
    _line(figure, 2, undecided, "undecided gates", {"color": PINK, "width": 2, "dash": "dot"})
    accuracy = series(history, "hard_accuracy")
    look = {"mode": "markers+lines", "marker": {"size": 6, "symbol": "square"}}
    _line(figure, 2, accuracy, "accuracy of the exact-count circuit, validation", {"color": ORANGE, "width": 1}, **look)
    target = history.get("target_sparsity")
    steps = sparsity[0] or undecided[0]
    if isinstance(target, int | float) and steps:
        ends = ([steps[0], steps[-1]], [float(target)] * 2)
        _line(figure, 2, ends, "target sparsity", {"color": GREY, "width": 1, "dash": "dash"})
    figure.update_yaxes(title_text="loss, KL (nats)", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="share", rangemode="tozero", row=2)
    figure.update_xaxes(title_text="step", row=2)
    figure.update_layout(legend={"orientation": "h", "y": -0.13, "yanchor": "top", "x": 0, "xanchor": "left"})
    return finish(figure, 600)


def series(history: dict, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one curve: the rows that have it, finite values only."""
    steps: list[float] = []
    values: list[float] = []
    for row in history.get("rows", []):
        step, value = row.get("step"), row.get(name)
        if _is_number(step) and _is_number(value):
            steps.append(float(step))
            values.append(float(value))
    return steps, values


def smooth(values: list[float]) -> list[float]:
    """Centred running mean over about a twentieth of the values; the window shrinks evenly at both ends."""
    half = max(2, len(values) // (2 * _SMOOTHED_OVER))
    smoothed: list[float] = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        window = values[place - reach : place + reach + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed


def layer_figure(graph: Graph, edges: list[RankedEdge]) -> go.Figure:
    """Heat map of reachable edges by the layer that writes and the layer that reads; no edge leaves a cell empty."""
    kept = Counter((edge.source_layer, edge.target_layer) for edge in edges)
    sources, targets = range(-1, graph.n_layers), range(graph.n_layers + 1)
    source_names = ["the input", *(f"layer {source}" for source in sources[1:])]
    target_names = [*(f"layer {target}" for target in targets[:-1]), "the logits"]
    notes = [
        [
            f"{read} reads {written}<br>{kept[source, target]} of {possible_edges(graph, source, target)} edges"
            for target, read in zip(targets, target_names, strict=True)
        ]
        for source, written in zip(sources, source_names, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=list(targets),
            y=list(sources),
            z=[[kept[source, target] or None for target in targets] for source in sources],
            text=notes,
            colorscale=SCALE,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="%{text}<extra></extra>",
            colorbar={"title": {"text": "edges"}, "thickness": 12, "outlinewidth": 0},
        )
    )
    layers = labelled_layers(graph)
    names = [str(layer) for layer in layers]
    figure.update_xaxes(title_text="reading layer", tickvals=[*layers, graph.n_layers], ticktext=[*names, "logits"])
    figure.update_yaxes(title_text="writing layer", tickvals=[-1, *layers], ticktext=["input", *names])
    figure.update_xaxes(range=[-0.5, graph.n_layers + 0.5], showgrid=False)
    figure.update_yaxes(range=[-1.5, graph.n_layers - 0.5], showgrid=False)
    return finish(figure, min(640, max(360, 18 * graph.n_layers + 80)))


def labelled_layers(graph: Graph) -> list[int]:
    """Layers whose number is written at an axis, few enough for a phone."""
    return thinned(graph.n_layers)


def thinned(layers: int) -> list[int]:
    """Every layer, every second or every fifth, as many as there is room for."""
    return list(range(0, layers, 1 if layers <= 8 else 2 if layers <= 16 else 5))


def possible_edges(graph: Graph, source: int, target: int) -> int:
    """Edges of the whole graph between two layers; -1 is the input, `n_layers` the logits."""
    writers = graph.inputs if source == -1 else graph.writers_per_layer
    if target == graph.n_layers:
        return writers
    if source == target:
        return 0 if graph.parallel else graph.n_heads * graph.mlp_readers
    return writers * graph.readers_per_layer if source < target else 0


def _line(
    figure: go.Figure, row: int, points: tuple[list[float], list[float]], name: str, line: dict, **rest: object
) -> None:
    if points[0]:
        look = {"mode": "lines", **rest}
        figure.add_trace(go.Scatter(x=points[0], y=points[1], name=name, line=line, **look), row=row, col=1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
