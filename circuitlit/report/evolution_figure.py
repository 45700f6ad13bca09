"""Figures of `MaskTimeline`: the timeline of a mask run, and where its circuit's edges were at each snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, SCALE, finish, thinned
from circuitlit.report.stages import doubtful, stage_rows
from circuitlit.timeline.mask_timeline import KINDS, MaskTimeline

KIND_COLOURS = dict(zip(KINDS, (BLUE, ORANGE, GREEN, PINK, RED), strict=True))
Look = dict[str, Any]

# Field of the timeline, name in the legend, line.
SHARES: tuple[tuple[str, str, Look], ...] = (
    ("progress", "progress towards the final circuit", {"color": BLUE, "width": 2.4}),
    ("overlap_previous", "overlap with the snapshot before", {"color": GREEN, "width": 1.6}),
    ("undecided", "undecided gates", {"color": PINK, "width": 1.6, "dash": "dot"}),
)


def timeline_figure(evolution: MaskTimeline) -> go.Figure:
    """Stages as bands, their boundaries with 95 % intervals, and the run's curves over one axis of training steps.

    Above the shares, with what the schedule asks for; then the edges that changed; then the KL of the circuit as it
    would be cut, where it was measured.
    """
    steps, schedule = evolution.steps, evolution.schedule
    measured = [(step, kl) for step, kl in zip(steps, evolution.hard_kl, strict=True) if kl is not None]
    rows = 3 if measured else 2
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for key, name, look in SHARES:
        curve = go.Scatter(x=steps, y=getattr(evolution, key), name=name, line=look, mode="lines")
        figure.add_trace(curve, row=1, col=1)
    asked = {"color": GREY, "width": 1.6, "dash": "dash"}
    curve = go.Scatter(x=steps, y=schedule.sparsity, name="sparsity asked for (schedule)", line=asked, mode="lines")
    figure.add_trace(curve, row=1, col=1)
    churn = go.Bar(x=steps, y=evolution.churn, name="edges changed since the snapshot before", marker_color=ORANGE)
    figure.add_trace(churn, row=2, col=1)
    figure.update_yaxes(title_text="share", range=[min(-0.03, *evolution.progress) - 0.02, 1.05], row=1)
    figure.update_yaxes(title_text="edges", rangemode="tozero", row=2)
    if measured:
        look = {"mode": "lines+markers", "line": {"color": RED, "width": 1.6}, "marker": {"size": 6}}
        name = "KL of the circuit as cut, validation"
        figure.add_trace(go.Scatter(x=[x for x, _ in measured], y=[y for _, y in measured], name=name, **look), 3, 1)
        figure.update_yaxes(title_text="KL (nats)", rangemode="tozero", row=3)
    figure.update_xaxes(range=[steps[0], max(steps[-1], steps[0] + 1)])
    figure.update_xaxes(title_text="step", row=rows)
    figure.update_traces(hovertemplate="step %{x}: %{y:.4~g}")
    figure.update_layout(shapes=list(timeline_shapes(evolution)), bargap=0.15)
    figure.update_layout(legend={"orientation": "h", "y": -0.12, "yanchor": "top", "x": 0, "xanchor": "left"})
    return finish(figure, 240 * rows)


def timeline_shapes(evolution: MaskTimeline) -> Iterator[dict[str, Any]]:
    """Bands, boundaries with their intervals, those that are not beyond chance, knots of the schedule.

    Each goes from the bottom of the figure to its top.
    """
    upright = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    for row in stage_rows(evolution):
        if row.observed:
            look = {"fillcolor": row.colour, "opacity": 0.13, "line": {"width": 0}, "name": row.name}
            yield {"type": "rect", "x0": row.first, "x1": row.last, **upright, **look}
    for point in evolution.stages.boundaries():
        look = {"fillcolor": GREY, "opacity": 0.35, "line": {"width": 0}, "name": "interval"}
        yield {"type": "rect", "x0": point.low, "x1": point.high, **upright, **look}
        line = {"color": GREY, "width": 1.5, "dash": "dash" if point.mark else "solid"}
        yield {"type": "line", "x0": point.step, "x1": point.step, **upright, "line": line, "name": "boundary"}
    for point in doubtful(evolution.stages):
        line = {"color": GREY, "width": 1, "dash": "dot"}
        yield {"type": "line", "x0": point.step, "x1": point.step, **upright, "line": line, "name": point.status}
    for name, knot in evolution.schedule.knots.items():
        if knot is not None:
            line = {"color": RED, "width": 1, "dash": "dot"}
            yield {"type": "line", "x0": knot, "x1": knot, **upright, "line": line, "name": name}


def kept_figure(evolution: MaskTimeline, snapshot: int = -1) -> go.Figure:
    """Edges of the circuit at one snapshot by the reader's layer and kind, as stacked bars; the logits come last."""
    layers = evolution.graph.n_layers
    figure = go.Figure()
    for kind in KINDS[:4]:
        look = {"marker_color": KIND_COLOURS[kind], "name": kind}
        figure.add_trace(go.Bar(x=list(range(layers)), y=getattr(evolution.kept, kind)[snapshot], meta=kind, **look))
    last = [evolution.kept.logits[snapshot]]
    figure.add_trace(go.Bar(x=[layers], y=last, marker_color=RED, name="logits", meta="logits"))
    figure.update_layout(barmode="stack", bargap=0.2)
    figure.update_layout(
        legend={"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0, "xanchor": "left", "traceorder": "normal"}
    )
    shown = thinned(layers)
    ticks = {"tickvals": [*shown, layers], "ticktext": [*map(str, shown), "logits"]}
    figure.update_xaxes(title_text="reading layer", showgrid=False, **ticks)
    figure.update_yaxes(title_text="edges", range=[0, 1.05 * _most(evolution)])
    return finish(figure, 320)


def flow_figure(evolution: MaskTimeline, snapshot: int = -1) -> go.Figure:
    """Heat map of the circuit's edges at one snapshot, writing layer by reading layer; colours mean the same always."""
    layers = evolution.graph.n_layers
    flow = evolution.flow
    cells: list[list[int | None]] = [[None] * (layers + 1) for _ in range(layers + 1)]
    for (writer, reader), number in zip(flow.pairs, flow.counts[snapshot], strict=True):
        cells[writer][reader] = number or None
    heat = go.Heatmap(
        z=cells,
        x=list(range(layers + 1)),
        y=list(range(-1, layers)),
        zmin=0,
        zmax=max((max(counts, default=1) for counts in flow.counts), default=1),
        colorscale=SCALE,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="layer %{x} reads layer %{y}: %{z} edges<extra></extra>",
        colorbar={"title": {"text": "edges"}, "thickness": 12, "outlinewidth": 0},
    )
    figure = go.Figure(heat)
    shown = thinned(layers)
    names = [str(layer) for layer in shown]
    figure.update_xaxes(title_text="reading layer", tickvals=[*shown, layers], ticktext=[*names, "logits"])
    figure.update_yaxes(title_text="writing layer", tickvals=[-1, *shown], ticktext=["input", *names])
    figure.update_xaxes(showgrid=False, range=[-0.5, layers + 0.5])
    figure.update_yaxes(showgrid=False, range=[-1.5, layers - 0.5])
    return finish(figure, min(520, max(320, 16 * layers + 80)))


def layers_over_steps(evolution: MaskTimeline) -> go.Figure:
    """Heat map of the circuit's edges into each layer over the steps, the logits on top."""
    layers, kept = evolution.graph.n_layers, evolution.kept
    rows = [
        [*(sum(parts) for parts in zip(*kinds, strict=True)), logits]
        for *kinds, logits in zip(kept.q, kept.k, kept.v, kept.mlp, kept.logits, strict=True)
    ]
    heat = go.Heatmap(
        z=[list(row) for row in zip(*rows, strict=True)],
        x=evolution.steps,
        y=list(range(layers + 1)),
        zmin=0,
        colorscale=SCALE,
        hovertemplate="step %{x}, layer %{y} reads %{z} edges<extra></extra>",
        colorbar={"title": {"text": "edges"}, "thickness": 12, "outlinewidth": 0},
    )
    figure = go.Figure(heat)
    shown = thinned(layers)
    figure.update_xaxes(title_text="step", showgrid=False)
    figure.update_yaxes(title_text="reading layer", tickvals=[*shown, layers], ticktext=[*map(str, shown), "logits"])
    return finish(figure, min(520, max(320, 16 * layers + 80)))


def _most(evolution: MaskTimeline) -> int:
    """Most edges that any layer ever reads."""
    kept = evolution.kept
    snapshots = zip(kept.q, kept.k, kept.v, kept.mlp, strict=True)
    layers = [sum(parts) for kinds in snapshots for parts in zip(*kinds, strict=True)]
    return max([*layers, *kept.logits, 1])
