"""The parts of `compare.json` on turnover and reuse: sentences, tables and a figure."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from rich.table import Table

from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import OVERLAP_HEADINGS, overlap_rows, overlap_sentence
from circuitlit.report.table import Metric

STABILITY_HEADINGS = ("what", "between models", "within a model", "kept")
NODE_HEADINGS = ("node", "CKA (null)", "cosine", "attention", "base's in tuned", "tuned's in base", "verdict")
COLOURS = {"same": GREEN, "unlike but fits": BLUE, "like another": ORANGE, "changed": RED, "uncertain": PINK}


def stability_rows(turnover: dict) -> list[tuple[str, ...]]:
    """How much of nodes and of edges stays, beside what resampling the pairs leaves."""
    keys = ("between", "within", "kept")
    return [(name, *(str(Metric.of(turnover[name][key])) for key in keys)) for name in ("nodes", "edges")]


def node_rows(reuse: dict, most: int = 12) -> list[tuple[str, ...]]:
    """The swapped nodes."""
    rows = []
    for node in reuse["nodes"]:
        swap = node["swap"]
        if swap is None or len(rows) == most:
            continue
        verdict = node["verdict"] if swap["telling"] else f"{node['verdict']} (hardly matters)"
        cells = (_number(node["cosine"]), _number(node["attention"]))
        own = f"{_number(node['cka'])} ({_number(node['cka_null'])})"
        swaps = (str(Metric.of(swap[key])) for key in ("forward", "backward"))
        rows.append((node["node"], own, *cells, *swaps, verdict))
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def reuse_sentence(reuse: dict) -> str:
    """How many nodes are alike, and how many can be swapped."""
    own, effect = reuse["summary"], Metric.of(reuse["effect"])
    alike = (
        f"{own['alike']} of {own['compared']} nodes write more like themselves in the other model than 95 % of "
        "mismatched nodes (by chance 5 %)."
    )
    if effect.bounds is None or effect.bounds[0] <= 0:
        return f"{alike} Neither model clearly does the task on these pairs (effect {effect}), so swaps say nothing."
    verdicts = ", ".join(f"{number} {name}" for name, number in own["telling_verdicts"].items()) or "none"
    return (
        f"{alike} Swaps are measured in shares of the task's effect in the {reuse['able']} model, {effect}. Of "
        f"{own['swapped']} nodes swapped {own['telling']} matter enough for a swap to tell: {verdicts}."
    )


def tables(result: dict) -> list[Table]:
    """For the terminal."""
    turnover = result["turnover"]
    made = [
        _table("overlap of the circuits", OVERLAP_HEADINGS, overlap_rows(turnover)),
        _table("corrected overlap of circuits of other resamples", STABILITY_HEADINGS, stability_rows(turnover)),
    ]
    if result["reuse"]:
        made.append(_table("nodes swapped", NODE_HEADINGS, node_rows(result["reuse"])))
    return made


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = grid(title, headings)
    for row in rows:
        table.add_row(*row)
    return table


def sections(result: dict) -> list[tuple[str, go.Figure | str]]:
    """For the page."""
    turnover, reuse = result["turnover"], result["reuse"]
    html = _html(OVERLAP_HEADINGS, overlap_rows(turnover)) + f"<p>{escape(overlap_sentence(turnover))}</p>"
    html += "<p>Corrected overlap of circuits of other resamples of the pairs:</p>"
    html += _html(STABILITY_HEADINGS, stability_rows(turnover))
    made: list[tuple[str, go.Figure | str]] = [("Overlap of the circuits", html)]
    if reuse:
        html = f"<p>{escape(reuse_sentence(reuse))}</p>" + _html(NODE_HEADINGS, node_rows(reuse, most=100))
        made += [("Reuse of nodes", html), ("Likeness and what a swap leaves", reuse_figure(reuse))]
    return made


def _html(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(heading)}" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def reuse_figure(reuse: dict) -> go.Figure:
    """Likeness against what a swap leaves, each node that was swapped; faint where the node hardly matters."""
    figure = go.Figure()
    for verdict, colour in COLOURS.items():
        own = [node for node in reuse["nodes"] if node["verdict"] == verdict]
        figure.add_scatter(
            x=[node["cka"] for node in own],
            y=[node["swap"]["forward"]["value"] for node in own],
            text=[node["node"] for node in own],
            mode="markers",
            name=f"{verdict} ({len(own)})",
            marker={"color": colour, "size": 8, "opacity": [1.0 if n["swap"]["telling"] else 0.3 for n in own]},
            hovertemplate="%{text}<br>CKA %{x:.3f}<br>left %{y:.3f}<extra></extra>",
        )
    figure.add_hline(y=1, line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(title_text="CKA of the node's writes, base and tuned")
    figure.update_yaxes(title_text="share of the task's effect left with the base's node")
    return finish(figure, 360)
