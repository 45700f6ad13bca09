"""`generality.json` as tables and as one page."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.cross_tasks import Generality
from circuitlit.compare.damage import Reverted
from circuitlit.compare.prevention import Prevention
from circuitlit.evaluate import Estimate
from circuitlit.report.figures import finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.simple_page import write_simple_page
from circuitlit.report.table import Metric

TITLES = {
    "faithfulness": "faithfulness of circuit (row) on task (column)",
    "overlap": "overlap of the circuits' edges, corrected for chance (0 as by chance, 1 the same)",
    "lost": "share of the task (column) lost without the circuit (row)",
}


def print_generality(result: Generality, console: Console) -> None:
    """Print the matrices, and what tuning damaged."""
    for key, title in TITLES.items():
        table = grid(title, ("circuit", *result.tasks))
        for name, row in zip(result.tasks, getattr(result, key), strict=True):
            table.add_row(name, *map(_cell, row))
        if key == "faithfulness":
            table.add_row("random", *(_cell(result.random[name]) for name in result.tasks))
        console.print(table)
    for sentence in sentences(result):
        console.print(sentence, highlight=False)


def _cell(raw: Estimate | float | None) -> str:
    if isinstance(raw, Estimate):
        return str(Metric.of(raw))
    return f"{raw:.3f}" if isinstance(raw, float | int) else "-"


def sentences(result: Generality) -> list[str]:
    """The findings in words."""
    made = [
        f"Generality {_cell(result.generality)} (1: as faithful on other tasks), specificity "
        f"{_cell(result.specificity)} (share of the task that its own circuit's loss costs beyond another's)."
    ]
    for entry in result.composites:
        on = ", ".join(f"{name} {_cell(value)}" for name, value in entry.faithfulness.items())
        made.append(f"{entry.kind} of {' and '.join(entry.of)}, {entry.n_edges:,} edges: {on}.")
    made += [
        f"{name}: faithfulness of its circuit {_cell(beside.circuit)}, of {beside.draws} random ones "
        f"{_cell(beside)} on the same {beside.n_pairs} pairs; lower KL by chance: p = {beside.p_holm:.2g}."
        for name, beside in result.random.items()
    ]
    made += [f"{' and '.join(pair.of)}: {overlap_sentence(pair)}" for pair in result.shared]
    made += prevention_sentences(result.prevention)
    transfer = result.transfer
    if transfer is None:
        return made
    for name, task in transfer.tasks.items():
        conflict = transfer.conflict[name]
        made.append(
            f"{name}: {task.verdict} ({task.score} {_cell(task.base)} to {_cell(task.tuned)}); conflict "
            f"{conflict.index:.3f}, by chance {_cell(conflict.by_chance)} (p = {conflict.p_holm:.2g})."
        )
    for name, found in transfer.reverted.items():
        made.append(
            f"{name}: putting back {' '.join(found.nodes)} recovers {_cell(found.recovered)} of the loss, random "
            f"sets {_cell(found.random_recovered)}{_p(found)}."
        )
    return made


def _p(found: Reverted) -> str:
    return "" if found.p_holm is None else f" (p = {found.p_holm:.2g})"


def prevention_sentences(found: Prevention | None) -> list[str]:
    """What freezing the nodes of conflict did for each task: loss on held-out answers, nats."""
    made: list[str] = []
    if found is None:
        return made
    made.append(f"Frozen while tuning on {found.on}: {' '.join(found.nodes)}; beside them equally many random nodes.")
    for name in found.loss_before:
        change = {arm: _cell(own[name]) for arm, own in found.loss_change.items()}
        role = "tuned on" if name == found.on else "held"
        gap = Metric.of(found.spared["random"][name])
        low, high = gap.bounds or (0.0, 0.0)
        sure = len(found.seeds) > 1 and (low > 0 or high < 0)  # of one set of random nodes chance is not known
        made.append(
            f"{name} ({role}): loss {_cell(found.loss_before[name])} nats changes by {change['nothing']} with "
            f"nothing frozen, {change['conflict']} with the named nodes, {change['random']} with random ones; spared "
            f"by naming them: {gap} nats, {'beyond' if sure else 'not beyond'} chance."
        )
    return made


def write_generality(result: Generality, folder: Path) -> Path:
    """Write `generality.html` into a folder: one file that needs nothing else."""
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(result))
    sections: list[tuple[str, go.Figure | str]] = [("Findings", words)]
    sections += [(title[0].upper() + title[1:], matrix_figure(result, key)) for key, title in TITLES.items()]
    lead = f"Circuits scored by {result.method} on {result.model}, {result.ablated_by} ablation, held-out pairs."
    return write_simple_page(folder / "generality.html", "Circuits across tasks", lead, sections)


def matrix_figure(result: Generality, key: str) -> go.Figure:
    """One matrix, circuits downwards and tasks across."""
    values = [
        [Metric.of(cell).value if isinstance(cell, Estimate) else cell for cell in row] for row in getattr(result, key)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=result.tasks,
            y=result.tasks,
            z=values,
            text=[[_cell(cell) for cell in row] for row in getattr(result, key)],
            texttemplate="%{text}",
            colorscale="Viridis",
            zmin=0,
            zmax=1,
        )
    )
    figure.update_yaxes(autorange="reversed")
    return finish(figure, 120 + 70 * len(values))
