"""Emergence, circuit size and stability against the size of the model, one point a model."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.timeline.evolution import Evolution

_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, GREY)


def scaling_figure(result: Evolution) -> go.Figure | None:
    """Three panels over parameters; None with fewer than two sizes. Bars go over the interval of each model.

    Open triangles emerge surely at no checkpoint of theirs, so they may have to stand higher.
    """
    series = [(one.n_parameters, one.tasks) for one in result.series if one.n_parameters is not None]
    if len({size for size, _ in series}) < 2:
        return None
    titles = ("tokens (or steps) to emergence", "nodes of the smallest circuit", "overlap of neighbours (J* of nodes)")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles)
    for number, task in enumerate(result.tasks):
        entries = [(size, tasks[task]) for size, tasks in series]
        look: dict[str, Any] = {"name": task, "legendgroup": task, "mode": "markers"}
        look["marker"] = {"color": _COLOURS[number % len(_COLOURS)], "size": 9}
        begun = [(size, entry.emerged) for size, entry in entries if entry.emerged]
        at = [max(1.0, one.before if one.at is None else one.at) for _, one in begun]
        above = [0.0 if one.sure is None else one.sure - place for (_, one), place in zip(begun, at, strict=True)]
        below = [place - max(1.0, one.before) for (_, one), place in zip(begun, at, strict=True)]
        bars = {"type": "data", "array": above, "arrayminus": below, "thickness": 1}
        symbols = ["triangle-up-open" if one.sure is None else "circle" for _, one in begun]
        own = {**look, "marker": {**look["marker"], "symbol": symbols}}
        figure.add_trace(go.Scatter(x=[size for size, _ in begun], y=at, error_y=bars, **own), row=1, col=1)
        for column, name in ((2, "nodes"), (3, "stability")):
            known = [(size, value) for size, e in entries if (value := getattr(e.learned, name)) is not None]
            x, y = [size for size, _ in known], [value for _, value in known]
            figure.add_trace(go.Scatter(x=x, y=y, showlegend=False, **look), row=1, col=column)
    figure.update_xaxes(type="log", title_text="parameters")
    figure.update_yaxes(type="log", col=1)
    figure.update_yaxes(type="log", col=2)
    return finish(figure, 360)
