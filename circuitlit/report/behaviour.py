"""The closing table of a tuning run: held-out answers before and after."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.finetune import BehaviourChange
from circuitlit.finetune.finetune_model import TunedModel
from circuitlit.report.grid import grid
from circuitlit.report.table import Metric


def behaviour_table(held_out: BehaviourChange, title: str) -> Table:
    """Accuracy and metric of base and tuned model on the same pairs, with intervals."""
    table = grid(title, ("held-out", "base", "tuned", "change", "paired test"))
    tests = {
        "accuracy": f"p = {held_out.accuracy_p:.2g} (+{held_out.gained} -{held_out.lost})",
        "metric": "bootstrap interval",
    }
    for name, test in tests.items():
        cells = [str(Metric.of(getattr(held_out, f"{name}_{which}"))) for which in ("base", "tuned", "change")]
        table.add_row(name, *cells, test)
    table.add_row("KL(base || tuned), nats", "0", str(Metric.of(held_out.kl)), "", "")
    return table


def print_behaviour(result: TunedModel, console: Console) -> None:
    """Print the table and the status of a tuning run."""
    title, change = f"{result.tune} ({result.adapter}) of {result.model} on {result.task}", result.held_out
    console.print(behaviour_table(change, f"{title}: {change.n_pairs} held-out pairs"))
    closing = f"{result.status}: {result.reason}" if result.reason else result.status
    console.print(Text(closing, "bold red" if result.reason else "green"))
