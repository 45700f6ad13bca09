"""A study as a table and two figures, all from `study.json`."""

from __future__ import annotations

import os
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.table import Metric, count, percent

_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK)
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
_PERFORMANCE = (
    ("prob_diff", "probability difference"),
    ("logit_diff", "logit difference"),
    ("accuracy", "accuracy"),
)
_COLUMNS = (("kl", "KL"), ("faithfulness", "faithf."), ("accuracy", "acc."), ("cpr", "CPR"), ("cmd", "CMD"))


def print_study(study: dict, console: Console) -> None:
    """Print a table a task with a row for each sparsity and method, then the paired differences and what failed."""
    for task in study["tasks"]:
        console.print(_table(task, [row for row in study["rows"] if row["task"] == task["task"]], console.width))
    for item in study["learned_minus_attribution_kl"]:
        names = f"{item['task']}, {percent(item['sparsity'])}: KL of {item['learner']} minus {item['attribution']}"
        console.print(Text(f"{names}: {Metric.of(item)} nats"), soft_wrap=True)
    for item in study["failed"]:
        console.print(Text(f"FAILED {item['cell']}: {item['error']}", "bold red"), soft_wrap=True)


def _table(task: dict, rows: list[dict], width: int) -> Table:
    """In a narrow terminal the KL stands without its interval."""
    title = f"{task['task']}: {count(task['n_edges_total'])} edges, {count(task['n_pairs'])} held-out pairs"
    table = Table(title=Text(title, "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("removed", justify="right", no_wrap=True)
    table.add_column("method", overflow="fold", min_width=12)
    for heading in (*(heading for _, heading in _COLUMNS), "reachable", "J*", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row["sparsity"]):
        kl = Metric.of(row["kl"])
        cells = [str(kl) if width >= 110 else kl.text()]
        cells += [Metric.of(row.get(name)).text("z.2f") for name, _ in _COLUMNS[1:]]
        alike = (row.get("seeds_overlap") or row.get("noise") or {}).get("mean")
        reachable = row.get("n_edges_reachable")
        cells += [count(None if reachable is None else round(reachable)), "-" if alike is None else f"{alike:.2f}"]
        table.add_row(percent(row["sparsity"]), _label(row), *cells, f"{row['seconds']:.0f}")
    return table


def study_figures(study: dict) -> dict[str, go.Figure]:
    """KL and task performance against the share of edges removed, one column a task, one line a method."""
    own = next((m for m in _PERFORMANCE if _exists(study, m[0])), _PERFORMANCE[-1])
    return {"kl": _figure(study, "kl", "KL (nats)"), "performance": _figure(study, *own)}


def write_figures(study: dict, folder: Path) -> list[Path]:
    """Write each figure as a page that needs no network and as plotly's json; returns the paths."""
    paths = []
    for name, figure in study_figures(study).items():
        for suffix, text in (("html", figure.to_html(include_plotlyjs=True)), ("json", figure.to_json())):
            path = folder / f"study_{name}.{suffix}"
            partial = path.with_name(path.name + ".part")
            partial.write_text(str(text), encoding="utf-8")
            os.replace(partial, path)
            paths.append(path)
    return paths


def _exists(study: dict, metric: str) -> bool:
    return any(Metric.of(row.get(metric)).value is not None for row in study["rows"])


def _figure(study: dict, metric: str, title: str) -> go.Figure:
    tasks = [task["task"] for task in study["tasks"]]
    figure = make_subplots(rows=1, cols=len(tasks), subplot_titles=tasks, shared_xaxes=True)
    methods = list(dict.fromkeys(row["method"] for row in study["rows"]))
    for column, task in enumerate(study["tasks"], 1):
        full = Metric.of(task["full"].get(metric)).value
        if metric != "kl" and full is not None:
            figure.add_hline(y=full, line={"color": GREY, "dash": "dash"}, row=1, col=column)  # type: ignore[arg-type]
        for number, method in enumerate(methods):
            rows = [row for row in study["rows"] if (row["task"], row["method"]) == (task["task"], method)]
            if rows:
                figure.add_trace(_line(rows, metric, number, column == 1), row=1, col=column)
        figure.update_xaxes(title="share of edges removed", tickformat=".1%", row=1, col=column)
    figure.update_yaxes(title=title, row=1, col=1)
    return finish(figure, 420)


def _line(rows: list[dict], metric: str, number: int, legend: bool) -> go.Scatter:
    rows = sorted(rows, key=lambda row: row["sparsity"])
    points = [(row["sparsity"], Metric.of(row.get(metric))) for row in rows]
    known = [(x, m.value, m.low, m.high) for x, m in points if None not in (m.value, m.low, m.high)]
    y = [value or 0.0 for _, value, _, _ in known]
    above = [(high or 0.0) - value for (_, _, _, high), value in zip(known, y, strict=True)]
    below = [value - (low or 0.0) for (_, _, low, _), value in zip(known, y, strict=True)]
    look = {"color": _COLOURS[number % len(_COLOURS)], "width": 1.5}
    return go.Scatter(
        x=[x for x, *_ in known],
        y=y,
        error_y={"type": "data", "array": above, "arrayminus": below, "thickness": 1},
        name=_label(rows[0]),
        legendgroup=rows[0]["method"],
        showlegend=legend,
        mode="lines+markers",
        line=look,
        marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 7},
    )


def _label(row: dict) -> str:
    several = row["n_circuits"] > 1
    return f"{row['method']}, mean of {row['n_circuits']}" if several else row["method"]
