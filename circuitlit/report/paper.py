"""Figures for papers: the circuit, its layers and the timeline as svg, png or pdf; the circuit in DOT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitlit.graph import Graph
from circuitlit.report import paper_circuit
from circuitlit.report.artefacts import Run
from circuitlit.report.edges import RankedEdge, edges_by_effect, ranked_edges
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, series, thinned
from circuitlit.report.stages import stage_rows
from circuitlit.timeline.mask_timeline import MaskTimeline

FORMATS = ("svg", "png", "pdf", "dot")
WIDTH = 5.5  # inches, a text column
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "circuitlit",  # the same run gives the same file
    "pdf.fonttype": 42,  # text stays text
}


def save_figures(run: Run, folder: Path, form: str, groups: Mapping[str, Sequence[str]] | None = None) -> list[Path]:
    """Write all figures that the run has data for and return their paths.

    Args:
        run: a finished run.
        folder: where to.
        form: one of `FORMATS`.
        groups: nodes by the names of groups, boxes in DOT.
    """
    effects = run.explanation and run.explanation.edges
    edges = edges_by_effect(run.circuit, effects.estimate) if effects else ranked_edges(run.circuit)
    if form == "dot":
        path = folder / "circuit.dot"
        path.write_text(paper_circuit.dot(run.circuit.graph, edges, groups), encoding="utf-8")
        return [path]
    paths = []
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figures = {"circuit": paper_circuit.circuit(run.circuit.graph, edges)} if edges else {}
        figures["layers"] = layers(run.circuit.graph, edges)
        if run.evolution:
            figures["timeline"] = timeline(run.evolution)
        if series(run.history, "loss")[0]:
            figures["training"] = training(run.history)
        for name, figure in figures.items():
            path = folder / f"{name}.{form}"
            dated = {"Date": None} if form == "svg" else {"CreationDate": None} if form == "pdf" else None
            figure.savefig(path, dpi=300, bbox_inches="tight", metadata=dated)
            paths.append(path)
    return paths


def timeline(evolution: MaskTimeline) -> Figure:
    """Stages as bands with the intervals of their boundaries; shares, changed edges and KL over steps."""
    steps = evolution.steps
    measured = [(step, kl) for step, kl in zip(steps, evolution.hard_kl, strict=True) if kl is not None]
    rows = 3 if measured else 2
    figure = Figure(figsize=(WIDTH, 1.5 * rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, 1, sharex=True))
    for axis in axes:
        _bands(axis, evolution)
    axes[0].plot(steps, evolution.progress, color=BLUE, label="progress")
    curves = (evolution.overlap_previous, evolution.churn)  # from the second snapshot on
    overlaps, changed = ([value for value in curve if value is not None] for curve in curves)
    axes[0].plot(steps[1:], overlaps, color=GREEN, lw=1, label="overlap with previous")
    axes[0].plot(steps, evolution.undecided, color=PINK, ls=":", label="undecided gates")
    axes[0].plot(steps, evolution.schedule.sparsity, color=GREY, ls="--", lw=1, label="sparsity asked for")
    axes[0].set_ylabel("share")
    axes[0].legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.12))
    axes[1].bar(steps[1:], changed, width=0.8 * (steps[1] - steps[0]), color=ORANGE)
    axes[1].set_ylabel("edges changed")
    if measured:
        axes[2].plot([x for x, _ in measured], [y for _, y in measured], "o-", ms=3, color=RED)
        axes[2].set_ylabel("KL (nats)")
        axes[2].set_ylim(0, 1.1 * max(y for _, y in measured) or 1)
    axes[0].set_xlim(steps[0], steps[-1])
    axes[-1].set_xlabel("step")
    return figure


def _bands(axis: Axes, evolution: MaskTimeline) -> None:
    first = axis.get_subplotspec()
    for row in stage_rows(evolution):
        if row.observed:
            axis.axvspan(row.first, row.last, color=row.colour, alpha=0.13, lw=0)
            if first is not None and first.is_first_row():
                middle = (row.first + row.last) / 2
                look = {"ha": "center", "va": "bottom", "fontsize": 7, "transform": axis.get_xaxis_transform()}
                axis.text(middle, 1.01, row.name, color=row.colour, **look)
    for point in evolution.stages.boundaries():
        axis.axvspan(point.low, point.high, color=GREY, alpha=0.35, lw=0)
        axis.axvline(point.step, color=GREY, lw=1, ls="--" if point.mark else "-")
    for knot in evolution.schedule.knots.values():
        if knot is not None:
            axis.axvline(knot, color=RED, lw=0.8, ls=":")


def training(history: dict) -> Figure:
    """Loss and validation KL over steps."""
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(*series(history, "loss"), color=BLUE, lw=0.8, alpha=0.6, label="loss")
    if series(history, "hard_kl")[0]:
        axis.plot(*series(history, "hard_kl"), "D-", ms=3, color=RED, label="KL of the circuit as cut, validation")
    axis.set(xlabel="step", ylabel="loss, KL (nats)")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def layers(graph: Graph, edges: list[RankedEdge]) -> Figure:
    """Reachable edges by the layer that writes and the layer that reads."""
    cells = [[float("nan")] * (graph.n_layers + 1) for _ in range(graph.n_layers + 1)]
    for edge in edges:
        row = cells[edge.source_layer + 1]
        number = row[edge.target_layer]
        row[edge.target_layer] = 1.0 if number != number else number + 1
    figure = Figure(figsize=(0.7 * WIDTH, 0.55 * WIDTH), layout="constrained")
    axis = figure.subplots()
    axis.grid(False)
    shown = thinned(graph.n_layers)
    image = axis.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=axis, label="edges")
    axis.set_xticks([*shown, graph.n_layers], [*map(str, shown), "logits"])
    axis.set_yticks([0, *(layer + 1 for layer in shown)], ["input", *map(str, shown)])
    axis.set(xlabel="reading layer", ylabel="writing layer")
    return figure
