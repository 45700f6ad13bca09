"""Heat maps of head scores, one for each score, as a page of its own."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuitlit.files import whole
from circuitlit.heads.roles import HeadScores
from circuitlit.report.figures import finish

COLUMNS = 3
_CELL = 300  # pixels of height for each row of maps


def heads_figure(scores: HeadScores) -> go.Figure:
    """One heat map (layer x head) a score; scores with negative values are centred on 0; unmeasured heads are empty."""
    names = list(scores.scores)
    rows = -(-len(names) // COLUMNS)
    titles = [name.replace("_", " ") for name in names]
    figure = make_subplots(rows=rows, cols=COLUMNS, subplot_titles=titles, vertical_spacing=0.3 / rows)
    for place, name in enumerate(names):
        values = scores.scores[name]
        finite = values[~values.isnan()]
        largest = float(finite.abs().max()) if len(finite) else 1.0
        signed = bool((finite < 0).any())
        cells = [[None if value != value else value for value in row] for row in values.tolist()]
        row, column = divmod(place, COLUMNS)
        figure.add_heatmap(
            z=cells,
            row=row + 1,
            col=column + 1,
            zmin=-largest if signed else 0,
            zmax=largest or 1.0,
            colorscale="RdBu" if signed else "Viridis",
            showscale=False,
            hoverongaps=False,
            hovertemplate="a%{y}.h%{x}: %{z:.3f}<extra>" + titles[place] + "</extra>",
        )
    figure.update_xaxes(title_text="head", showgrid=False)
    figure.update_yaxes(title_text="layer", showgrid=False, autorange="reversed")
    return finish(figure, _CELL * rows)


def write_heads_page(folder: Path, scores: HeadScores) -> Path:
    """Write `heads.html`, readable without a network, and return its path."""
    path = folder / "heads.html"
    about = f"{scores.details.get('model', '')}, {scores.details.get('task', '')}".strip(", ")
    figure = heads_figure(scores).update_layout(title=f"Heads of {about}" if about else None, margin_t=80)
    with whole(path) as partial:
        figure.write_html(partial, include_plotlyjs=True, config={"displayModeBar": False, "responsive": True})
    return path
