"""A watched circuit as a page and as a table: each figure over the steps, with the limit where drift begins."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.text import Text

from circuitlit.evaluate import Estimate
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.stages import STAGE_COLOURS, stages_text
from circuitlit.timeline.watched import Reading, WatchedCircuit

ROWS = {
    "faithfulness": "faithfulness of the start circuit (1: the whole model, 0: the corrupted run)",
    "overlap": "overlap of the circuit found anew (J*: 1 the same edges, 0 chance)",
    "accuracy": "accuracy on the pairs",
    "metric": "the task's metric on the pairs",
    "text_kl": "KL from the model at the start on other text, nats a token",
}
COLUMNS = {
    "faithfulness": "faithfulness",
    "overlap": "overlap, start",
    "overlap_before": "overlap, before",
    "edges_changed": "edges changed",
    "accuracy": "accuracy",
    "metric": "metric",
    "text_kl": "text KL",
}


def print_watch(found: WatchedCircuit, console: Console) -> None:
    """Print a row a reading, the stages, and where it drifted."""
    table = grid(_title(found), (), ("step", *COLUMNS.values()))
    for row in _cells(found):
        table.add_row(*row)
    console.print(table)
    console.print(Text(f"  {stages_text(found.stages)}"), soft_wrap=True)
    for line in _lines(found):
        console.print(Text(f"  {line}", "bold red" if "drift at" in line else ""), soft_wrap=True)


def write_watch_page(found: WatchedCircuit, folder: Path) -> Path:
    """Write `watch.html`, a page that needs no network; returns its path."""
    lead = " ".join([f"{found.status}{f' ({found.reason})' if found.reason else ''}.", stages_text(found.stages)])
    notes = "".join(f"<li>{html.escape(line)}" for line in _lines(found))
    sections: list[tuple[str, go.Figure | str]] = [
        ("Over the training", watch_figure(found)),
        ("What was read", html_table(("step", *COLUMNS.values()), _cells(found))),
        ("How to read it", f"<ul>{notes}</ul>"),
    ]
    return write_simple_page(folder / "watch.html", _title(found), lead, sections)


def watch_figure(found: WatchedCircuit) -> go.Figure:
    """A row a figure, with its limit dashed, alarms as crosses, and the stages as bands."""
    rows = [name for name in ROWS if any(name in one.figures() for one in found.readings)]
    titles = [ROWS[name] for name in rows]
    figure = make_subplots(len(rows), 1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=titles)
    for place, name in enumerate(rows, start=1):
        _line(figure, place, found.readings, name, BLUE, "at each reading")
        if name == "overlap":
            _line(figure, place, found.readings, "overlap_before", GREEN, "with the reading before")
            _line(figure, place, found.readings, "overlap_given", ORANGE, "with the given circuit")
        limit = getattr(found.limits, name)
        if limit is not None:
            figure.add_hline(y=limit, line={"color": GREY, "dash": "dash"}, row=place, col=1)  # type: ignore[arg-type]
        sounded = [(one.step, one.figures()[name]) for one in found.readings if name in {a.signal for a in one.alarms}]
        if sounded:
            x, y = zip(*sounded, strict=True)
            marker = {"color": RED, "symbol": "x", "size": 9}
            look = {"mode": "markers", "marker": marker, "name": "drift", "legendgroup": "drift"}
            shown = "drift" not in {getattr(trace, "name", None) for trace in figure.select_traces()}
            figure.add_trace(go.Scatter(x=x, y=y, showlegend=shown, **look), row=place, col=1)
    for stage in found.stages.stages:
        if stage.start is not None and stage.end is not None:
            band = {"fillcolor": STAGE_COLOURS[stage.name], "opacity": 0.12, "line_width": 0}
            figure.add_vrect(x0=stage.start.step, x1=stage.end.step, **band)
    figure.update_xaxes(title="step", row=len(rows), col=1)
    figure.update_layout(legend={"orientation": "h", "y": -0.12})
    return finish(figure, 190 * len(rows) + 90)


def _line(figure: go.Figure, row: int, readings: Sequence[Reading], name: str, colour: str, label: str) -> None:
    known = [one for one in readings if name in one.figures()]
    if not known:
        return
    values = [one.figures()[name] for one in known]
    ends = [_estimate(one, name) for one in known]
    bars = None
    if all(end is not None and end.low is not None and end.high is not None for end in ends):
        above = [end.high - value for end, value in zip(ends, values, strict=True)]  # type: ignore[union-attr,operator]
        below = [value - end.low for end, value in zip(ends, values, strict=True)]  # type: ignore[union-attr,operator]
        bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
    shown = label not in {getattr(trace, "name", None) for trace in figure.select_traces()}
    look = {"mode": "lines+markers", "line": {"color": colour}, "name": label, "legendgroup": label}
    steps = [one.step for one in known]
    figure.add_trace(go.Scatter(x=steps, y=values, error_y=bars, showlegend=shown, **look), row=row, col=1)


def _estimate(one: Reading, name: str) -> Estimate | None:
    known = {
        "faithfulness": one.start.faithfulness,
        "accuracy": one.cell.behaviour.accuracy,
        "metric": one.cell.behaviour.metric,
        "text_kl": one.text_kl,
    }
    return known.get(name)


def _title(found: WatchedCircuit) -> str:
    return f"{found.task}: {found.n_edges:,} of {found.n_edges_total:,} edges watched in {found.model}"


def _cells(found: WatchedCircuit) -> list[list[str]]:
    return [[f"{one.step:,}", *(_text(one.figures().get(name), name) for name in COLUMNS)] for one in found.readings]


def _text(value: float | None, name: str) -> str:
    return "-" if value is None else f"{value:,.0f}" if name == "edges_changed" else f"{value:.3f}"


def _lines(found: WatchedCircuit) -> list[str]:
    """What there is to say beside the figures."""
    train, test = found.n_pairs
    lines = [
        f"The {found.circuit} circuit is run in each step's weights on {test} test pairs; the one found anew is of "
        f"equal size, by {found.method} on {train} training pairs.",
        "Dashed lines are limits: drift is what lies further off than resampled pairs would have lain at the start.",
    ]
    drifted = [one for one in found.readings if one.alarms]
    lines += [f"drift at step {one.step:,}: {', '.join(map(str, one.alarms))}" for one in drifted]
    lines += [f"step {one.step} could not be read: {one.reason}" for one in found.unread]
    if found.cost is not None:
        lines.append(f"All readings took {found.seconds:.1f} s, {found.cost:.1%} of the training's time.")
    if found.stopped:
        lines.append("The training was stopped for it.")
    return lines
