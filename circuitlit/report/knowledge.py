"""`knowledge.json` as tables and as one page."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.known_facts import Knowledge
from circuitlit.report.figures import BLUE, GREY, finish
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric

TASKS = ("pack", "task", "pairs", "accuracy", "answered (training, test)")
ROLES = ("task", "role", "heads (share of the effect)", "their loss on test pairs", "random heads'", "rank p")


def print_knowledge(result: Knowledge, console: Console) -> None:
    """Print what the model knows and which heads look it up."""
    tables = {f"what {result.model} knows": (TASKS, task_rows(result)), "heads": (ROLES, role_rows(result))}
    for title, (headings, rows) in tables.items():
        table = grid(title, headings)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def task_rows(result: Knowledge) -> list[tuple[str, ...]]:
    """One row a task."""
    return [
        (
            task.pack,
            name,
            str(task.n_pairs),
            str(Metric.of(task.accuracy)),
            f"{task.answered['train']}, {task.answered['test']}",
        )
        for name, task in result.tasks.items()
    ]


def role_rows(result: Knowledge) -> list[tuple[str, ...]]:
    """One row a task and role; a check's effect is a change of the metric, so a loss is below 0."""
    rows = []
    for name, task in result.tasks.items():
        for role, found in (task.roles or {}).items():
            heads = " ".join(f"{head.head} ({head.share:.2f})" for head in found.heads)
            check = found.check
            cells = ("-", "-", "-")
            if check:
                cells = (str(Metric.of(check["effect"])), str(Metric.of(check["random"])), f"{check['p_holm']:.2g}")
            rows.append((name, role, heads or f"none of {found.tried}", *cells))
    return rows


def write_knowledge(result: Knowledge, folder: Path) -> Path:
    """Write `knowledge.html` into a folder: one file that needs nothing else."""
    sections: list[tuple[str, go.Figure | str]] = [
        ("Tasks", html_table(TASKS, task_rows(result))),
        ("Pairs answered, by relation or sentence", group_figure(result)),
        ("Heads", html_table(ROLES, role_rows(result))),
    ]
    lead = (
        "Heads are sought on training pairs that the model answers and checked on such test pairs, whose sentences are "
        "others, beside random heads of the same layers. Entity and relation heads: attention from the last token to "
        "subject or relation is blocked. Retrieval heads: their write to the logits is taken from the corrupted prompt."
    )
    return write_simple_page(folder / "knowledge.html", f"What {result.model} knows", lead, sections)


def group_figure(result: Knowledge) -> go.Figure:
    """Pairs of each group, and those that are answered."""
    groups = {f"{name}: {group}": own for name, task in result.tasks.items() for group, own in task.groups.items()}
    figure = go.Figure()
    for key, colour in (("n", GREY), ("answered", BLUE)):
        figure.add_bar(y=list(groups), x=[own[key] for own in groups.values()], name=key, orientation="h")
        figure.data[-1].marker.color = colour  # type: ignore[attr-defined]
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(autorange="reversed")
    return finish(figure, 80 + 18 * len(groups))
