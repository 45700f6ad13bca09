"""`capabilities.json` as tables and as one page."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.capabilities import Capabilities
from circuitlit.report.figures import BLUE, GREEN, GREY, RED, error_bars, finish
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric

COLOURS = {"gained": GREEN, "improved": BLUE, "unchanged": GREY, "degraded": RED}
HEADINGS = ("task", "verdict", "score", "base", "tuned", "change", "p (Holm)")


def print_capabilities(result: Capabilities, console: Console) -> None:
    """Print what was gained and lost, and where the gains sit."""
    title = f"{result.base['name']} against {result.tuned['name']}"
    table = grid(title, HEADINGS)
    for cells in task_rows(result):
        table.add_row(*cells)
    console.print(table)
    for sentence in acquisition_sentences(result):
        console.print(sentence, highlight=False)


def task_rows(result: Capabilities) -> list[tuple[str, ...]]:
    """One row a task."""
    rows = []
    for name, task in result.tasks.items():
        estimates = (str(Metric.of(getattr(task, key))) for key in ("base", "tuned", "change"))
        rows.append((name, task.verdict, task.score, *estimates, f"{task.p_holm:.2g}"))
    return rows


def acquisition_sentences(result: Capabilities) -> list[str]:
    """One sentence a gain."""
    made = []
    for name, found in result.acquisition.items():
        wanted, bounds = result.settings["share"], found.gap.bounds
        if bounds is None or bounds[0] <= 0 <= bounds[1]:
            made.append(
                f"{name}: its metric is not clearly another after tuning ({found.gap} on the pairs that choose nodes), "
                "so no nodes can be said to carry the gain."
            )
            continue
        if found.nodes is None:
            made.append(f"{name}: no set of nodes carries {wanted:g} of the gain by its {found.by}.")
            continue
        made.append(
            f"{name}: the {found.by} of {len(found.nodes)} nodes ({' '.join(found.nodes)}) carry "
            f"{Metric.of(found.gain_share)} of the gain on held-out pairs, random sets like them "
            f"{Metric.of(found.random_gain_share)}{'' if found.p_holm is None else f' (p = {found.p_holm:.2g})'}."
        )
    return made


def write_capabilities(result: Capabilities, folder: Path) -> Path:
    """Write `capabilities.html` into a folder: one file that needs nothing else."""
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in acquisition_sentences(result))
    sections: list[tuple[str, go.Figure | str]] = [
        ("Tasks", html_table(HEADINGS, task_rows(result))),
        ("Change of the score", change_figure(result)),
    ]
    if result.acquisition:
        sections += [("Nodes that carry the gains", sentences), ("Share of the gain", prefix_figure(result))]
    lead = "Paired tests on held-out pairs, adjusted by Holm over tasks and scores."
    title = f"{result.base['name']} against {result.tuned['name']}: capabilities"
    return write_simple_page(folder / "capabilities.html", title, lead, sections)


def change_figure(result: Capabilities) -> go.Figure:
    """Change of each task's score, with its interval."""
    figure = go.Figure()
    for verdict, colour in COLOURS.items():
        own = {name: task for name, task in result.tasks.items() if task.verdict == verdict}
        metrics = [Metric.of(task.change) for task in own.values()]
        values = [metric.value or 0.0 for metric in metrics]
        errors = error_bars(metrics)
        if own:
            figure.add_bar(x=list(own), y=values, error_y=errors, name=verdict, marker={"color": colour})
    figure.update_yaxes(title_text="tuned minus base")
    return finish(figure, 340)


def prefix_figure(result: Capabilities) -> go.Figure:
    """Share of the gain against the number of nodes moved, on validation pairs."""
    figure = go.Figure()
    for name, found in result.acquisition.items():
        sizes = sorted(found.tried)
        values = [found.tried[size] for size in sizes]
        figure.add_scatter(x=sizes, y=values, mode="lines+markers", name=name)
    figure.add_hline(y=result.settings["share"], line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(title_text="nodes moved from tuned to base")
    figure.update_yaxes(title_text="share of the gain")
    return finish(figure, 340)
