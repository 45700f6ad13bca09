"""Turnover and reuse between two models: sentences, tables and a figure."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from rich.table import Table

from circuitlit.compare.comparison import Comparison
from circuitlit.compare.reuse import Reuse
from circuitlit.compare.turnover import Turnover
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import OVERLAP_HEADINGS, overlap_rows, overlap_sentence
from circuitlit.report.simple_page import html_table
from circuitlit.report.table import Metric

STABILITY_HEADINGS = ("what", "between models", "within a model", "kept")
NODE_HEADINGS = ("node", "CKA (null)", "cosine", "attention", "base's in tuned", "tuned's in base", "verdict")
COLOURS = {"same": GREEN, "unlike but fits": BLUE, "like another": ORANGE, "changed": RED, "uncertain": PINK}


def stability_rows(turnover: Turnover) -> list[tuple[str, ...]]:
    """How much of nodes and of edges stays, beside what resampling the pairs leaves."""
    parts = {"nodes": turnover.nodes, "edges": turnover.edges}
    return [
        (name, *(str(Metric.of(e)) for e in (part.between, part.within, part.retained))) for name, part in parts.items()
    ]


def node_rows(reuse: Reuse, most: int = 12) -> list[tuple[str, ...]]:
    """The swapped nodes."""
    rows = []
    for node in reuse.nodes:
        swap = node.swap
        if swap is None or len(rows) == most:
            continue
        verdict = str(node.verdict) if swap.telling else f"{node.verdict} (hardly matters)"
        own = f"{_number(node.cka)} ({_number(node.cka_null)})"
        swaps = (str(Metric.of(left)) for left in (swap.forward, swap.backward))
        rows.append((node.node, own, _number(node.cosine), _number(node.attention), *swaps, verdict))
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def reuse_sentence(reuse: Reuse) -> str:
    """How many nodes are alike, and how many can be swapped."""
    own, effect = reuse.summary, Metric.of(reuse.effect)
    alike = (
        f"{own.alike} of {own.compared} nodes write more like themselves in the other model than 95 % of "
        "mismatched nodes (by chance 5 %)."
    )
    if effect.bounds is None or effect.bounds[0] <= 0:
        return f"{alike} Neither model clearly does the task on these pairs (effect {effect}), so swaps say nothing."
    verdicts = ", ".join(f"{number} {name}" for name, number in own.telling_verdicts.items()) or "none"
    return (
        f"{alike} Swaps are measured in shares of the task's effect in the {reuse.able} model, {effect}. Of "
        f"{own.swapped} nodes swapped {own.telling} matter enough for a swap to tell: {verdicts}."
    )


def tables(result: Comparison) -> list[Table]:
    """For the terminal."""
    turnover = result.turnover
    made = [
        _table("overlap of the circuits", OVERLAP_HEADINGS, overlap_rows(turnover)),
        _table("corrected overlap of circuits of other resamples", STABILITY_HEADINGS, stability_rows(turnover)),
    ]
    if result.reuse:
        made.append(_table("nodes swapped", NODE_HEADINGS, node_rows(result.reuse)))
    return made


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = grid(title, headings)
    for row in rows:
        table.add_row(*row)
    return table


def sections(result: Comparison) -> list[tuple[str, go.Figure | str]]:
    """For the page."""
    turnover, reuse = result.turnover, result.reuse
    html = html_table(OVERLAP_HEADINGS, overlap_rows(turnover)) + f"<p>{escape(overlap_sentence(turnover))}</p>"
    html += "<p>Corrected overlap of circuits of other resamples of the pairs:</p>"
    html += html_table(STABILITY_HEADINGS, stability_rows(turnover))
    made: list[tuple[str, go.Figure | str]] = [("Overlap of the circuits", html)]
    if reuse:
        html = f"<p>{escape(reuse_sentence(reuse))}</p>" + html_table(NODE_HEADINGS, node_rows(reuse, most=100))
        made += [("Reuse of nodes", html), ("Likeness and what a swap leaves", reuse_figure(reuse))]
    return made


def reuse_figure(reuse: Reuse) -> go.Figure:
    """Likeness against what a swap leaves, each node that was swapped; faint where the node hardly matters."""
    figure = go.Figure()
    for verdict, colour in COLOURS.items():
        own = [(node, node.swap) for node in reuse.nodes if node.swap is not None and node.verdict == verdict]
        figure.add_scatter(
            x=[node.cka for node, _ in own],
            y=[swap.forward.value for _, swap in own],
            text=[node.node for node, _ in own],
            mode="markers",
            name=f"{verdict} ({len(own)})",
            marker={"color": colour, "size": 8, "opacity": [1.0 if swap.telling else 0.3 for _, swap in own]},
            hovertemplate="%{text}<br>CKA %{x:.3f}<br>left %{y:.3f}<extra></extra>",
        )
    figure.add_hline(y=1, line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(title_text="CKA of the node's writes, base and tuned")
    figure.update_yaxes(title_text="share of the task's effect left with the base's node")
    return finish(figure, 360)
