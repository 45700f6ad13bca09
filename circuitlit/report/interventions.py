"""`intervene.json` as tables and as one page with figures."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.interventions import Interventions
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, RED, error_bars, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import p_text
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric

SHOWN = 10


def print_interventions(result: Interventions, console: Console) -> None:
    """Print the ranking of effects, and what was done to the chosen set."""
    ablation = result.ablation
    title = f"{result.task} on {result.model}: metric lost by {result.ablated_by} ablation"
    for what in ("nodes", "edges"):
        table = grid(f"{title}, {what}", (what[:-1], "kind", "drop", "KL (nats)", "q"))
        for row in getattr(ablation, what)[:SHOWN]:
            table.add_row(row.name, row.kind, str(Metric.of(row.drop)), f"{row.kl:.3g}", f"{row.q:.2g}")
        table.add_row("random", "", str(Metric.of(getattr(ablation, f"random_{what[:-1]}"))), "", "")
        console.print(table)
    table = grid(" ".join(result.chosen), ("together", "they", "random like them", "p"))
    for cells in set_rows(result):
        table.add_row(*cells)
    console.print(table)


def set_rows(result: Interventions) -> list[tuple[str, str, str, str]]:
    """What each intervention on the chosen set did, beside random sets."""
    own, doses, transfer = result.ablation.set, result.enhancement, result.transfer
    rows = [
        ("ablation: metric lost", _text(own.drop), _text(own.random), p_text(own.p_holm, own.rank_p, own.draws)),
        ("ablation: KL on other text", _text(own.collateral_kl), _text(own.random_collateral_kl), ""),
    ]
    if own.specificity is not None:
        rows.append(("ablation: specificity", _text(own.specificity), _text(own.random_specificity), ""))
    p = p_text(doses.p_holm, doses.rank_p, len(doses.random_changes))
    rows.append(("dose: slope", f"{doses.slope:.3f}", _text(doses.random_slope), p))
    rows.append(("dose: monotonicity", f"{doses.monotonicity:.3f}", _text(doses.random_monotonicity), ""))
    for name in ("activations", "weights") if transfer else ():
        found = getattr(transfer, name)
        p = p_text(found.p_holm, found.rank_p, found.draws)
        rows.append((f"transfer of {name}: gain", _text(found.gain_share), _text(found.random_gain_share), p))
        beside = (_text(found.collateral_kl), _text(found.random_collateral_kl))
        rows.append((f"transfer of {name}: KL on other text", *beside, ""))
    if transfer and not transfer.gap_is_clear:
        rows.append(("the tuned model's metric is not clearly another", _text(transfer.metric_gap), "", ""))
    return rows


def _text(raw: object) -> str:
    return str(Metric.of(raw))


def write_interventions(result: Interventions, folder: Path) -> Path:
    """Write `intervene.html` into a folder: one file that needs nothing else."""
    headings = ("", "they", "random like them", "p (Holm)")
    sections = [
        ("Nodes, ablated one by one", effects_figure(result, "nodes")),
        ("Edges, cut one by one", effects_figure(result, "edges")),
        ("Nodes ablated together", cumulative_figure(result)),
        ("Dose and response", dose_figure(result)),
        (
            f"The set {' '.join(result.chosen)}",
            html_table(headings, set_rows(result)),
        ),
    ]
    lead = (
        f"Metric lost by {result.ablated_by} ablation on {result.n_pairs} held-out pairs; nodes ranked by "
        f"{result.method}. Random: {result.settings['draws']} sets of equal size, kinds and layers."
    )
    return write_simple_page(folder / "intervene.html", f"{result.task}: interventions", lead, sections)


def effects_figure(result: Interventions, what: str) -> go.Figure:
    """Drop of each node or edge with its interval; grey where it may be none after correction."""
    rows, level = getattr(result.ablation, what), result.ablation.level
    metrics = [Metric.of(row.drop) for row in rows]
    values = [metric.value or 0.0 for metric in metrics]
    figure = go.Figure(
        go.Bar(
            x=[row.name for row in rows],
            y=values,
            error_y=error_bars(metrics),
            marker={"color": [BLUE if row.q <= level else GREY for row in rows]},
            customdata=[(row.kind, row.q) for row in rows],
            hovertemplate="%{x}, %{customdata[0]}<br>drop %{y:.3f}, q %{customdata[1]:.2g}<extra></extra>",
        )
    )
    random = Metric.of(getattr(result.ablation, f"random_{what[:-1]}")).value
    if random is not None:
        figure.add_hline(y=random, line={"color": ORANGE, "dash": "dash"}, annotation_text="random")
    figure.update_yaxes(title_text="metric lost")
    return finish(figure, 380)


def cumulative_figure(result: Interventions) -> go.Figure:
    """Drop against the number of nodes ablated together, beside random sets."""
    rows = result.ablation.cumulative
    figure = go.Figure()
    for name, key, colour in (("best first", "drop", RED), ("random", "random", GREY)):
        _curve(figure, [row.nodes for row in rows], [Metric.of(getattr(row, key)) for row in rows], name, colour)
    figure.update_xaxes(title_text="nodes")
    figure.update_yaxes(title_text="metric lost")
    return finish(figure, 340)


def dose_figure(result: Interventions) -> go.Figure:
    """Change of the metric against the dose; one thin line a random set."""
    rows = result.enhancement.doses
    doses = [row.dose for row in rows]
    figure = go.Figure()
    for number, changes in enumerate(result.enhancement.random_changes):
        line = {"color": GREY, "width": 0.7}
        figure.add_scatter(x=doses, y=changes, mode="lines", line=line, name="random", showlegend=number == 0)
    _curve(figure, doses, [Metric.of(row.change) for row in rows], "the set", GREEN)
    figure.update_xaxes(title_text="dose (1 is the model as it is)")
    figure.update_yaxes(title_text="change of the metric")
    return finish(figure, 340)


def _curve(figure: go.Figure, x: list, metrics: list[Metric], name: str, colour: str) -> None:
    values = [metric.value for metric in metrics]
    errors = error_bars(metrics)
    figure.add_scatter(x=x, y=values, error_y=errors, mode="lines+markers", name=name, line={"color": colour})
