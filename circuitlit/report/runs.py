"""One page for several runs: results with intervals, shared edges beyond chance, curves and stages side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import StandIns, draws_for
from circuitlit.evaluate.overlap_figures import SharedFigures
from circuitlit.evaluate.similarity import similarity
from circuitlit.evaluate.testing import with_holm
from circuitlit.report.artefacts import Run, read_run
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, SCALE, finish, series
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.page import render, save_page
from circuitlit.report.stages import STAGE_COLOURS, stage_rows
from circuitlit.report.sweep import ends_of, named_runs, write_csv
from circuitlit.report.table import Metric, columns, count, entry_of, percent
from circuitlit.timeline.agreement import Agreement, agreement
from circuitlit.timeline.mask_timeline import MaskTimeline

COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Pair:
    """How alike two runs' circuits are.

    Attributes:
        first, second: names of the runs.
        reason: why they cannot be compared; empty where they can.
        values: Jaccard index, the same corrected for chance, share of the smaller one in the larger, rank correlation
            of the scores of all edges that either keeps.
        shared: nodes and edges beside chance.
    """

    first: str
    second: str
    reason: str = ""
    values: dict[str, float] | None = None
    shared: SharedFigures | None = None

    @property
    def sentence(self) -> str:
        """What they share, in words."""
        return overlap_sentence(self.shared) if self.shared else ""


def write_runs_page(
    folders: Sequence[Path], path: Path, names: Sequence[str] | None = None, left_out: Mapping[str, str] | None = None
) -> Path:
    """Compare finished runs on one page.

    Args:
        folders: two or more run directories.
        path: of the page.
        names: of the runs; None takes the ends of their paths.
        left_out: runs that cannot be shown, by name, and why.

    Raises:
        UserError: fewer than two runs, a directory without a run, or the page cannot be written.
    """
    if len(set(map(Path.resolve, folders))) < 2:
        reasons = "".join(f"; not shown: {name} ({reason})" for name, reason in (left_out or {}).items())
        raise UserError(f"a comparison needs two runs or more{reasons}")
    runs = [read_run(folder) for folder in folders]
    names = names or ends_of(folders)
    evolved = [(name, run.evolution) for name, run in zip(names, runs, strict=True) if run.evolution]
    pairs = circuit_pairs(names, runs)
    figures = {"overlap": overlap_figure(names, pairs), "curves": curves_figure(names, runs)}
    if evolved:
        figures["stages"] = stages_figure(evolved)
    values = {
        "names": names,
        "left_out": left_out or {},
        "heading": columns(runs[0].result),
        "rows": [(name, run, _metrics(run, columns(runs[0].result))) for name, run in zip(names, runs, strict=True)],
        "pairs": pairs,
        "agreement": stages_agreement([evolution for _, evolution in evolved]),
        "stages": [(name, stage_rows(evolution)) for name, evolution in evolved],
        "metric_of": Metric.of,
        "count": count,
        "percent": percent,
    }
    return save_page(path, render("runs.html.j2", values, figures))


@checks_arguments
def write_runs(given: Sequence[Path | str], folder: Path | str) -> tuple[list[Path], dict[str, str]]:
    """Write `runs.html`, which compares runs, and `runs.csv` with a line for each.

    Args:
        given: run directories, or the folder of a sweep.
        folder: where to.

    Returns:
        Both paths; and runs of a sweep that are not on the page, by name, with the reason.

    Raises:
        UserError: fewer than two runs, a directory without a run, or a file cannot be written.
    """
    names, left_out = named_runs([Path(one) for one in given])
    folder = Path(folder)
    table = write_csv(list(names), list(names.values()), folder / "runs.csv")
    shown = {run: name for run, name in names.items() if name not in left_out}
    return [write_runs_page(list(shown), folder / "runs.html", list(shown.values()), left_out), table], left_out


def circuit_pairs(names: Sequence[str], runs: Sequence[Run]) -> list[Pair]:
    """Every two runs' circuits, compared where their graphs and token roles are the same."""
    pairs, draws = [], draws_for(len(runs) * (len(runs) - 1) // 2)
    sides = {
        name: StandIns.of(run.circuit, draws, seed) for seed, (name, run) in enumerate(zip(names, runs, strict=True))
    }
    for (first, one), (second, two) in combinations(zip(names, runs, strict=True), 2):
        try:
            values = similarity(one.circuit, two.circuit)
            pairs.append(Pair(first, second, "", values, sides[first].shared(sides[second]).figures()))
        except ValueError as error:
            pairs.append(Pair(first, second, reason=str(error)))
    return with_holm(pairs)


def overlap_figure(names: Sequence[str], pairs: Sequence[Pair]) -> go.Figure:
    """Heat map of the chance-corrected overlap of every two circuits; empty where they cannot be compared."""
    cells: list[list[float | None]] = [[1.0 if one == two else None for one in names] for two in names]
    for pair in pairs:
        if pair.values:
            one, two = names.index(pair.first), names.index(pair.second)
            cells[one][two] = cells[two][one] = pair.values["corrected_jaccard"]
    labels = [f"{name} " for name in names]  # a blank keeps plotly from reading numbers into them
    heat = go.Heatmap(z=cells, x=labels, y=labels, zmin=0, zmax=1, colorscale=SCALE, texttemplate="%{z:.2f}")
    heat.update(xgap=1, ygap=1, hoverongaps=False, colorbar={"thickness": 12, "title": {"text": "J*"}})
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, type="category")
    return finish(figure, 140 + 44 * len(names))


def curves_figure(names: Sequence[str], runs: Sequence[Run]) -> go.Figure:
    """Validation KL of the circuit as cut, progress towards the final circuit, sparsity; a colour a run."""
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        line = {"color": COLOURS[number % len(COLOURS)], "dash": _DASHES[number // len(COLOURS) % len(_DASHES)]}
        curves = (
            series(run.history, "hard_kl"),
            (run.evolution.steps, run.evolution.progress) if run.evolution else ([], []),
            series(run.history, "sparsity"),
        )
        seen = False
        for row, (steps, values) in enumerate(curves, 1):
            if steps:
                look = {"line": line, "name": name, "legendgroup": name, "showlegend": not seen, "mode": "lines"}
                figure.add_trace(go.Scatter(x=steps, y=values, **look), row=row, col=1)
                seen = True
    for row, title in enumerate(("KL (nats)", "progress", "sparsity"), 1):
        figure.update_yaxes(title_text=title, row=row)
    figure.update_yaxes(rangemode="tozero", row=1)
    figure.update_yaxes(range=[0, 1.05], row=3)
    figure.update_xaxes(title_text="step", row=3)
    figure.update_layout(legend={"orientation": "h", "y": -0.1, "yanchor": "top", "x": 0, "xanchor": "left"})
    return finish(figure, 680)


def stages_figure(evolved: Sequence[tuple[str, MaskTimeline]]) -> go.Figure:
    """A bar a run, in the stages' colours, with the intervals of the boundaries and the schedule's knots."""
    figure = go.Figure()
    labels = [f"{name} " for name, _ in evolved]
    for place, colour in enumerate(STAGE_COLOURS.values()):
        rows = [(label, stage_rows(own)[place]) for label, (_, own) in zip(labels, evolved, strict=True)]
        seen = [(label, row) for label, row in rows if row.observed]
        figure.add_bar(
            y=[label for label, _ in seen],
            x=[row.last - row.first for _, row in seen],
            base=[row.first for _, row in seen],
            text=[f"{row.name}: {row.start} to {row.end}" for _, row in seen],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            name=rows[0][1].name,
            marker={"color": colour, "opacity": 0.65},
            orientation="h",
        )
    points = [
        (label, stage.start)
        for label, (_, own) in zip(labels, evolved, strict=True)
        for stage in own.stages.stages
        if stage.start is not None and stage.start.step > own.steps[0]
    ]
    low, high = ([abs(getattr(at, end) - at.step) for _, at in points] for end in ("low", "high"))
    bars = {"type": "data", "array": high, "arrayminus": low, "thickness": 2, "width": 8, "color": GREY}
    look = {"mode": "markers", "marker": {"color": GREY, "symbol": "line-ns-open", "size": 14}, "error_x": bars}
    steps = [at.step for _, at in points]
    figure.add_scatter(x=steps, y=[label for label, _ in points], name="boundary, 95 % interval", **look)
    knots = [
        (label, knot)
        for label, (_, own) in zip(labels, evolved, strict=True)
        for knot in own.schedule.knots.values()
        if knot is not None
    ]
    look = {"mode": "markers", "marker": {"color": RED, "symbol": "diamond", "size": 8}}
    figure.add_scatter(x=[k for _, k in knots], y=[label for label, _ in knots], name="knot of the schedule", **look)
    figure.update_layout(barmode="overlay", bargap=0.35)
    figure.update_layout(legend={"orientation": "h", "y": -0.35, "yanchor": "top", "x": 0, "xanchor": "left"})
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=False, type="category")
    figure.update_xaxes(title_text="step")
    return finish(figure, 200 + 48 * len(evolved))


def stages_agreement(evolutions: Sequence[MaskTimeline]) -> list[Agreement]:
    """Whether runs of one length agree about the start of each stage; nothing for fewer than two or several lengths."""
    lengths = {own.schedule.steps for own in evolutions}
    if len(evolutions) < 2 or len(lengths) > 1:
        return []
    return agreement([own.stages for own in evolutions], [own.schedule.knots for own in evolutions], lengths.pop())


def _metrics(run: Run, wanted: tuple[tuple[str, str, str], ...]) -> list[Metric]:
    return [Metric.of(entry_of(run.result, name)) for name, _, _ in wanted]
