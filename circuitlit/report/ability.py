"""A table of what the full model does on several tasks."""

from __future__ import annotations

from rich.console import Console

from circuitlit.evaluate.ability import Ability
from circuitlit.report.grid import grid
from circuitlit.report.table import Metric, count


def print_ability(result: Ability, console: Console) -> None:
    """Print one row a task and split; a task that the model does not do stands in red.

    `diff` is the task's metric, logit or probability difference; `on corr.` is the same on corrupted prompts.
    """
    numbers = ("pairs", "accu-\nracy", "on\ncorr.", "diff", "on\ncorr.", "KL\ncorr.", "asked")
    table = grid(f"what {result.model} does", ("task", "split"), numbers)
    for row in result.splits:
        cells = [Metric.of(getattr(row, name)).text() for name in ("accuracy", "corrupted_accuracy")]
        cells += [Metric.of(getattr(row, name)).text() for name in ("metric", "corrupted_metric", "corrupted_kl")]
        style = "bold red" if row.reason else None
        table.add_row(row.task, row.split, count(row.n_pairs), *cells, f"{row.min_accuracy:g}", style=style)
    console.print(table)
