"""A study as a table and two figures, all from `study.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.evaluate.study.results import FewestEdges, MethodRow, MethodStudy, StudiedTask
from circuitlit.files import whole
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.published import print_study_published
from circuitlit.report.table import Metric, count, percent

_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK)
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
_PERFORMANCE = (
    ("prob_diff", "probability difference"),
    ("logit_diff", "logit difference"),
    ("accuracy", "accuracy"),
)
_COLUMNS = (("kl", "KL"), ("faithfulness", "faithf."), ("accuracy", "acc."), ("cpr", "CPR"), ("cmd", "CMD"))


def print_study(study: MethodStudy, console: Console) -> None:
    """Print a table a task with a row for each sparsity and method, then the paired differences and what failed."""
    for task in study.tasks:
        console.print(_table(task, [row for row in study.methods if row.task == task.task], console.width))
    print_study_published(study, console)
    for item in study.learned_minus_attribution_kl:
        names = f"{item.task}, {percent(item.sparsity)}: KL of {item.learner} minus {item.attribution}"
        console.print(Text(f"{names}: {Metric.of(item)} nats"), soft_wrap=True)
    for item in study.rankings:
        order = ", ".join(f"{name} {value:.3f}" for name, value in zip(item.methods, item.values, strict=True))
        console.print(Text(f"{item.task}, {percent(item.sparsity)}, by {item.figure}: {order}"), soft_wrap=True)
    for item in study.wins:
        text = "; ".join(f"{side} {', '.join(getattr(item, side)) or '-'}" for side in ("won", "lost", "open"))
        console.print(Text(f"{item.learner} at {percent(item.sparsity)}: {text}"), soft_wrap=True)
    if study.fewest_edges:
        console.print(_fewest(study.fewest_edges))
    for item in study.failed:
        console.print(Text(f"FAILED {item.cell}: {item.error}", "bold red"), soft_wrap=True)


def _table(task: StudiedTask, rows: list[MethodRow], width: int) -> Table:
    """In a narrow terminal the KL stands without its interval."""
    title = f"{task.task}: {count(task.n_edges_total)} edges, {count(task.n_pairs)} held-out pairs"
    table = grid(title, ("removed", "method"), (*(heading for _, heading in _COLUMNS), "reach-\nable", "J*", "s"))
    for row in sorted(rows, key=lambda row: row.sparsity):
        kl = Metric.of(row.kl)
        cells = [str(kl) if width >= 110 else kl.text()]
        cells += [Metric.of(getattr(row, name)).text("z.2f") for name, _ in _COLUMNS[1:]]
        alike, reachable = row.seeds_overlap or row.noise, row.n_edges_reachable
        cells += [count(None if reachable is None else round(reachable)), f"{alike.mean:.2f}" if alike else "-"]
        table.add_row(percent(row.sparsity), row.label, *cells, f"{row.seconds:.0f}")
    return table


def _fewest(items: list[FewestEdges]) -> Table:
    """Edges that each method needs for the KL of one of them, a column a task."""
    tasks = list(dict.fromkeys(item.task for item in items))
    attribution = items[0].attribution
    title = f"edges needed for the KL of {attribution}; in brackets how many times fewer than it has"
    own = [next(item for item in items if item.task == task) for task in tasks]
    asked = [f"{item.task} (KL {item.kl:.3f} of {count(item.attribution_edges)})" for item in own]
    table = grid(title, ("method",), asked)
    for method in dict.fromkeys(item.method for item in items):
        found = {item.task: item for item in items if item.method == method}
        cells = [_needed(found.get(task)) for task in tasks]
        table.add_row(method, *cells)
    return table


def _needed(item: FewestEdges | None) -> str:
    if item is None or item.n_edges is None:
        return "-"
    return f"{count(round(item.n_edges))} ({item.times_fewer:.2f})"


def study_figures(study: MethodStudy) -> dict[str, go.Figure]:
    """KL and task performance against the share of edges removed: a column a task, a line a method, masks thick."""
    return {"kl": _figure(study, [("kl", "KL (nats)")]), "performance": _figure(study, _PERFORMANCE)}


def write_figures(study: MethodStudy, folder: Path) -> list[Path]:
    """Write each figure as a page that needs no network and as plotly's json; returns the paths."""
    paths = []
    for name, figure in study_figures(study).items():
        for suffix, text in (("html", figure.to_html(include_plotlyjs=True)), ("json", figure.to_json())):
            path = folder / f"study_{name}.{suffix}"
            with whole(path) as partial:
                partial.write_text(str(text), encoding="utf-8")
            paths.append(path)
    return paths


def _figure(study: MethodStudy, metrics: Sequence[tuple[str, str]]) -> go.Figure:
    """One of some metrics, for each task the first that it has."""
    tasks = [task.task for task in study.tasks]
    figure = make_subplots(rows=1, cols=len(tasks), subplot_titles=tasks, shared_xaxes=True)
    methods = list(dict.fromkeys(row.method for row in study.methods))
    for column, task in enumerate(study.tasks, 1):
        of_task = [row for row in study.methods if row.task == task.task]
        metric, title = next((m for m in metrics if _exists(of_task, m[0])), metrics[-1])
        full = getattr(task.full, metric).value
        if metric != "kl" and full is not None:
            figure.add_hline(y=full, line={"color": GREY, "dash": "dash"}, row=1, col=column)  # type: ignore[arg-type]
        for number, method in enumerate(methods):
            rows = [row for row in of_task if row.method == method]
            if rows:
                figure.add_trace(_line(rows, metric, number, column == 1), row=1, col=column)
        figure.update_xaxes(title="share of edges removed", tickformat=".1%", row=1, col=column)
        log = "log" if metric == "kl" else "linear"
        figure.update_yaxes(title=title if column == 1 or metric != "kl" else None, type=log, row=1, col=column)
    return finish(figure, 420)


def _exists(rows: list[MethodRow], metric: str) -> bool:
    return any(getattr(row, metric).value is not None for row in rows)


def _line(rows: list[MethodRow], metric: str, number: int, legend: bool) -> go.Scatter:
    rows = sorted(rows, key=lambda row: row.sparsity)
    points = [(row.sparsity, getattr(row, metric)) for row in rows]
    known = [(x, m.value, m.low, m.high) for x, m in points if None not in (m.value, m.low, m.high)]
    y = [value or 0.0 for _, value, _, _ in known]
    above = [(high or 0.0) - value for (_, _, _, high), value in zip(known, y, strict=True)]
    below = [value - (low or 0.0) for (_, _, low, _), value in zip(known, y, strict=True)]
    learned = rows[0].kind == "learner"
    look = {
        "color": _COLOURS[number % len(_COLOURS)],
        "width": 2.6 if learned else 1.2,
        "dash": None if learned else "dot",
    }
    return go.Scatter(
        x=[x for x, *_ in known],
        y=y,
        error_y={"type": "data", "array": above, "arrayminus": below, "thickness": 1},
        name=rows[0].label,
        legendgroup=rows[0].method,
        showlegend=legend,
        mode="lines+markers",
        line=look,
        marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 7},
    )
