"""`knowledge.json` as tables and as one page."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.text import Text

from circuitlit.compare.known_facts import Knowledge
from circuitlit.heads.knowledge import BRIDGES
from circuitlit.report.figures import BLUE, GREY, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import p_text
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric

TASKS = ("pack", "task", "pairs", "accuracy", "answered (training, test)")
ROLES = ("task", "role", "nodes (share of the effect)", "their loss on test pairs", "random nodes'", "p (Holm)")
CIRCUITS = (
    "task",
    "edges",
    "pairs of sentences",
    "KL",
    "without edges",
    "shuffled",
    "shuffled minus circuit",
    "J* of halves",
)
SHARED = ("circuits of", "pairs of tasks", "Jaccard", "by chance", "J*", "over resampled sentences", "p")


def print_knowledge(result: Knowledge, console: Console) -> None:
    """Print what the model knows and which heads look it up."""
    tables = {f"what {result.model} knows": (TASKS, task_rows(result)), "carriers": (ROLES, role_rows(result))}
    tables |= {"circuits": (CIRCUITS, circuit_rows(result)), "shared edges": (SHARED, shared_rows(result))}
    for title, (headings, rows) in tables.items():
        if not rows:
            continue
        table = grid(title, headings)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for name, task in result.tasks.items():
        if task.reason:
            console.print(Text(f"{name}: {task.reason}"), soft_wrap=True)


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
                p = p_text(check["p_holm"], check["rank_p"], check["draws"])
                cells = (str(Metric.of(check["effect"])), str(Metric.of(check["random"])), p)
            rows.append((name, role, heads or f"none of {found.tried}", *cells))
    return rows


def circuit_rows(result: Knowledge) -> list[tuple[str, ...]]:
    """One row a circuit; brackets are for other pairs, then for new sentences."""
    rows = []
    for name, task in result.tasks.items():
        own = task.circuit
        if own is None:
            continue
        estimates = (own.kl, own.corrupted_kl, own.shuffled_kl, own.shuffled_minus_circuit_kl)
        measured = [f"{metric} {metric.sentences()}".strip() for metric in map(Metric.of, estimates)]
        pairs = f"{own.n_pairs} of {own.n_groups}"
        rows.append((name, f"{own.n_edges:,}", pairs, *measured, str(Metric.of(own.halves))))
    return rows


def shared_rows(result: Knowledge) -> list[tuple[str, ...]]:
    """One row for every two circuits, then for every two kinds; J* is 0 by chance and 1 for the same edges."""
    rows = []
    for one in result.overlaps:
        edges = one.edges
        interval = "-" if one.low is None else f"[{one.low:.3f}, {one.high:.3f}]"
        p = "-" if edges.p_holm is None else f"{edges.p_holm:.2g}"
        values = (f"{edges.jaccard:.3f}", f"{edges.expected:.3f}", f"{edges.corrected:.3f}")
        rows.append((" and ".join(one.of), str(one.pairs), *values, interval, p))
    return rows


def write_knowledge(result: Knowledge, folder: Path) -> Path:
    """Write `knowledge.html` into a folder: one file that needs nothing else."""
    tables = {
        "Tasks": (TASKS, task_rows(result)),
        "Carriers": (ROLES, role_rows(result)),
        "Circuits": (CIRCUITS, circuit_rows(result)),
        "Edges that circuits share": (SHARED, shared_rows(result)),
        "Not sought": (("task", "why"), [(name, task.reason) for name, task in result.tasks.items() if task.reason]),
    }
    sections: list[tuple[str, go.Figure | str]] = [
        (title, html_table(headings, rows)) for title, (headings, rows) in tables.items() if rows
    ]
    sections.append(("Pairs answered, by relation or sentence", group_figure(result)))
    lead = (
        "Nodes are sought on training pairs that the model answers and checked on such test pairs, whose sentences are "
        "others, beside random nodes of the same layers. Heads that read: attention from the last token to a part of "
        "the prompt (of facts: entity, the subject; relation) is blocked. Retrieval heads and writing MLPs: their "
        "write to the logits is taken from the corrupted prompt. "
    )
    if any(BRIDGES.keys() & (task.roles or {}) for task in result.tasks.values()):
        lead += (
            "Bridge: nodes that write, at the subject, what an answer in two steps goes over and no prompt says (of a "
            "city's language, the country); what they put out there is taken from the corrupted prompt. "
        )
    lead += (
        "Circuits are compared with shuffled ones, and their overlap with circuits in which every node has as many "
        "edges (J*: 0 chance, 1 the same edges). Brackets of circuits are 95 % intervals for other pairs of these "
        "sentences, then for new sentences; those of overlaps hold what circuits of resampled training sentences "
        "share, which know fewer sentences: J* may lie above them."
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
