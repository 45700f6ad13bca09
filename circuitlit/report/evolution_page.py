"""The evolution of circuits as one page: behaviour, head scores, size, likeness and stages over tokens."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitlit.files import whole
from circuitlit.report.evolution_table import algorithm_lines, causal_lines, neighbours_text
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.scaling_figure import scaling_figure
from circuitlit.report.size_tables import size_tables
from circuitlit.report.stages import stages_text
from circuitlit.timeline.evolution import Evolution, HeadsRow, SeriesEvolution, TaskEvolution, TaskRow
from circuitlit.timeline.stages import Timeline

_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK)
_DASHES = ("solid", "dash", "dot", "dashdot")
_ROWS = ("accuracy", "best head score", "edges of the smallest circuit", "overlap with the last (J*)", "stage")
_STAGES = ("initialization", "rapid_learning", "fine_tuning", "convergence")


def write_evolution_page(result: Evolution, folder: Path) -> Path:
    """Write `evolve.html`, a page that needs no network; returns its path."""
    path = folder / "evolve.html"
    figure = evolution_figure(result)
    lines = [html.escape(f"{series.name}: {text}") for series in result.series for text in causal_lines(series)]
    for series in result.series:
        lines += [
            html.escape(f"{series.name}, {task}: {stages_text(entry.stages)} {neighbours_text(entry.learned)}")
            for task, entry in series.tasks.items()
        ]
        lines += [
            html.escape(f"{series.name}, {task}: {text}")
            for task, entry in series.tasks.items()
            for text in algorithm_lines(entry)
        ]
    notes = "".join(f"<li>{line}</li>" for line in lines)
    body = figure.to_html(include_plotlyjs=True, full_html=False)
    shares = algorithm_figure(result)
    body += "" if shares is None else shares.to_html(include_plotlyjs=False, full_html=False)
    scaling = scaling_figure(result)
    body += "" if scaling is None else scaling.to_html(include_plotlyjs=False, full_html=False)
    tables = "".join(_table(*table) for table in size_tables(result))
    claims = "".join(
        f"<li><b>{claim.verdict}</b>: {html.escape(claim.claim)}; {html.escape(claim.measured)}</li>"
        for claim in result.account
    )
    said = f"<h2>Beside the published account</h2><ul>{claims}</ul>" if claims else ""
    title = html.escape(f"Circuits of {result.model} over training")
    style = ":root{color-scheme:light dark}body{font-family:system-ui,sans-serif;max-width:70rem;margin:auto}"
    style += "body{padding:0 1rem}h2{font-size:1rem}div{overflow-x:auto}"
    style += "td,th{padding:.1rem .6rem;text-align:right;white-space:nowrap}"
    head = f'<head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>'
    content = f"<body><h1>{title}</h1>{body}<ul>{notes}</ul>{tables}{said}</body>"
    with whole(path) as partial:
        partial.write_text(f'<!doctype html><html lang="en">{head}{content}</html>', encoding="utf-8")
    return path


def _table(title: str, headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<h2>{html.escape(title)}</h2><div><table><tr>{head}</tr>{body}</table></div>"


def evolution_figure(result: Evolution) -> go.Figure:
    """Five rows on one axis: tokens where all rows know them, else steps; a colour a task or role, a dash a model.

    Seeds of one model share its dash. Intervals are drawn where there is one series.
    """
    titles = [f"{title}, {result.faithfulness:.0%} faithful" if "smallest" in title else title for title in _ROWS]
    figure = make_subplots(rows=5, cols=1, shared_xaxes=True, vertical_spacing=0.04, subplot_titles=titles)
    axis = "tokens" if result.knows_tokens else "step"
    models = list(dict.fromkeys(_model(series) for series in result.series))
    dashes = {model: _DASHES[number % len(_DASHES)] for number, model in enumerate(models)}
    alone, named = len(result.series) == 1, set()
    for series in result.series:
        look = {"dash": dashes[_model(series)], "width": 2 if alone else 1.2}
        for colour, (task, entry) in zip(_cycle(), series.tasks.items(), strict=False):
            if entry.rows:
                _task_lines(figure, axis, task, entry, {**look, "color": colour}, task not in named, alone)
                named.add(task)
        rows = series.heads.rows
        for colour, role in zip(_cycle(), rows[0].best if rows else (), strict=False):
            shown = {"legend": "legend2", "legendgroup": role, "showlegend": ("role", role) not in named}
            shown |= {"name": role.replace("_", " "), "line": {**look, "color": colour}, "mode": "lines"}
            values = [row.best[role] for row in rows]
            figure.add_trace(go.Scatter(x=_places(rows, axis), y=values, **shown), row=2, col=1)
            named.add(("role", role))
    for model in models if len(models) > 1 else ():
        line = {"color": GREY, "dash": dashes[model], "width": 1.6}
        figure.add_trace(go.Scatter(x=[None], y=[None], name=model, line=line, mode="lines"), row=1, col=1)
    figure.update_xaxes(type="log")
    figure.update_xaxes(title=f"{axis} (log; the untrained model at the left end)", row=5, col=1)
    figure.update_yaxes(type="log", row=3, col=1)
    figure.update_yaxes(tickvals=[1, 2, 3, 4], ticktext=[name.replace("_", " ") for name in _STAGES], row=5, col=1)
    figure.update_layout(legend={"y": 1}, legend2={"y": 0.78})
    return finish(figure, 1100)


def algorithm_figure(result: Evolution) -> go.Figure | None:
    """Shares of the IOI algorithm's three parts over training, those of random heads dotted; None without any."""
    axis, figure = "tokens" if result.knows_tokens else "step", go.Figure()
    for series in result.series:
        for task, entry in series.tasks.items():
            rows = [row for row in entry.rows if row.algorithm]
            for colour, part in zip(_cycle(), "BCD", strict=False):
                known = [row for row in rows if row.algorithm and part in row.algorithm.shares]
                for key, dash in (("share", "solid"), ("random", "dot")):
                    shares = [row.algorithm.shares[part] for row in known if row.algorithm]
                    values = [getattr(share, key).value for share in shares]
                    look = {"line": {"color": colour, "dash": dash, "width": 2}, "mode": "lines+markers"}
                    name = f"{series.name}, {task}: {part}{', random heads' if key == 'random' else ''}"
                    if known:
                        figure.add_trace(go.Scatter(x=_places(known, axis), y=values, name=name, **look))
    if not figure.data:
        return None
    figure.update_xaxes(type="log", title=axis)
    figure.update_yaxes(title="share of effects", range=[0, 1.02])
    figure.update_layout(title="the IOI algorithm: B name movers, C S-inhibition, D induction and duplicate tokens")
    return finish(figure, 360)


def _model(series: SeriesEvolution) -> str:
    """Name of a series without its seed."""
    return series.name.split("-seed")[0]


def _task_lines(
    figure: go.Figure, axis: str, task: str, entry: TaskEvolution, look: dict[str, Any], named: bool, intervals: bool
) -> None:
    rows = entry.rows
    x = _places(rows, axis)
    found = [row.behaviour.accuracy for row in rows]
    above = [None if m.high is None or m.value is None else m.high - m.value for m in found]
    below = [None if m.low is None or m.value is None else m.value - m.low for m in found]
    bars = {"type": "data", "array": above, "arrayminus": below, "thickness": 1} if intervals else None
    mode = "lines+markers" if intervals else "lines"
    shared: dict[str, Any] = {"legendgroup": task, "name": task, "line": look, "mode": mode}
    values = [m.value for m in found]
    figure.add_trace(go.Scatter(x=x, y=values, error_y=bars, showlegend=named, **shared), row=1, col=1)
    sizes = [row.faithful and row.faithful.n_edges for row in rows]
    figure.add_trace(go.Scatter(x=x, y=sizes, showlegend=False, **shared), row=3, col=1)
    alike = [row.likeness.last.corrected_jaccard for row in rows]
    figure.add_trace(go.Scatter(x=x, y=alike, showlegend=False, **shared), row=4, col=1)
    step = {"shape": "hv"}
    stages = [stage_at(entry.stages, row.step) for row in rows]
    shared["line"] = {**look, **step}
    figure.add_trace(go.Scatter(x=x, y=stages, showlegend=False, **shared), row=5, col=1)


def stage_at(stages: Timeline, step: int) -> int | None:
    """Number of the stage at a step, from 1; None where none was found."""
    begun = [
        _STAGES.index(stage.name) + 1 for stage in stages.stages if stage.start is not None and stage.start.step <= step
    ]
    return max(begun, default=None)


def _places(rows: Sequence[TaskRow] | Sequence[HeadsRow], axis: str) -> list[float]:
    """Places on a logarithmic axis; 0 stands half of the first step away from it."""
    values = [float(getattr(row, axis)) for row in rows]
    least = min((value for value in values if value > 0), default=1.0)
    return [value or least / 2 for value in values]


def _cycle() -> list[str]:
    return [*_COLOURS, GREY] * 10
