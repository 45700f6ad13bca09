"""A table of what the full model does on several tasks."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.report.table import Metric, count


def print_ability(result: dict, console: Console) -> None:
    """Print one row a task and split; a task that the model does not do stands in red.

    `diff` is the task's metric, logit or probability difference; `on corr.` is the same on corrupted prompts.
    """
    table = Table(title=Text(f"what {result['model']} does", "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for heading in ("task", "split"):
        table.add_column(heading, no_wrap=True)
    for heading in ("pairs", "accuracy", "on corr.", "diff", "on corr.", "KL corr.", "asked"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        cells = [Metric.of(row[name]).text() for name in ("accuracy", "corrupted_accuracy")]
        cells += [Metric.of(row[name]).text() for name in ("metric", "corrupted_metric", "corrupted_kl")]
        style = "bold red" if row["reason"] else None
        table.add_row(row["task"], row["split"], count(row["n_pairs"]), *cells, f"{row['min_accuracy']:g}", style=style)
    console.print(table)
