"""A task's published measures as rows: on a run's page, in the terminal, and of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from circuitlit.report.grid import grid
from circuitlit.report.table import Metric, percent

if TYPE_CHECKING:
    from circuitlit.evaluate.study.results import MethodRow, MethodStudy

LABELS = {
    "prob_diff_years": "probability difference over the century",
    "prob_diff_10": "the same within ten years of the start",
    "sharpness": "cut-off sharpness",
    "kendall_tau": "Kendall's tau to the model",
    "kl_years": "KL over the century (nats)",
    "mass": "probability of all its years",
    "prob_diff_forms": "probability difference of verb forms",
    "equally_weighted": "right form preferred, verbs alike (EW)",
    "model_weighted": "right form's share, by the model (MW)",
    "logit_diff_two": "logit difference of the two",
    "prefers": "right one preferred",
    "prob_diff_two": "probability difference of the two",
}
COLUMNS = {
    "circuit": "this circuit",
    "full": "full model",
    "attribution": "attribution",
    "corrupted": "corrupted run",
    "shuffled": "shuffled",
    "closer": "nearer to the model than shuffled ones by",
}


def published_columns(found: Mapping[str, Any]) -> list[str]:
    """Keys of `COLUMNS` that some measure has."""
    return [key for key in COLUMNS if any(figure.get(key) for figure in found["figures"].values())]


def published_rows(found: Mapping[str, Any]) -> list[tuple[str, list[Metric]]]:
    """Each measure of `result.json`'s `published` with a value for every column."""
    keys = published_columns(found)
    return [
        (LABELS[name] if name in LABELS else str(name), [Metric.of(figure.get(key)) for key in keys])
        for name, figure in found["figures"].items()
    ]


def published_note(found: Mapping[str, Any]) -> str:
    """What the measures are on, and what they do not say."""
    said = f"Published measures, on {found['n_pairs']} held-out pairs of {found['n_sentences']} sentences"
    return f"{said}: {found['reason']}." if found.get("reason") else f"{said}."


def print_published(found: Mapping[str, Any], console: Console) -> None:
    """Print the measures of one circuit."""
    wide = console.width >= 150
    table = grid(published_note(found), ("measure",), [COLUMNS[key] for key in published_columns(found)])
    for label, values in published_rows(found):
        table.add_row(label, *(str(value) if wide else value.text() for value in values))
    console.print(table)


def study_rows(study: MethodStudy, task: str) -> tuple[list[str], list[list[str]]]:
    """Names of a task's measures, and a row for full model, corrupted run, and each method and sparsity."""
    of_task: Sequence[MethodRow] = [row for row in study.methods if row.task == task and row.published]
    ends = next(one for one in study.tasks if one.task == task).published or {}
    names = list(dict.fromkeys(name for row in of_task for name in row.published or {}))
    rows = [["-", side, *(str(Metric.of(ends[side][name])) for name in names)] for side in ends]
    for row in sorted(of_task, key=lambda row: row.sparsity):
        cells = [str(Metric.of((row.published or {}).get(name))) for name in names]
        rows.append([percent(row.sparsity), row.label, *cells])
    return names, rows


def print_study_published(study: MethodStudy, console: Console) -> None:
    """Print the measures of a study, a table a task that has some."""
    for task in study.tasks:
        names, rows = study_rows(study, task.task)
        if not names:
            continue
        table = grid(f"{task.task}: published measures", ("removed", "method"), [LABELS.get(n, n) for n in names])
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
