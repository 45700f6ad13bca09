"""The tables of `check`: identities of one model, or all model types."""

from __future__ import annotations

from rich.console import Console

from circuitlit.evaluate.check.check_model import ModelCheck
from circuitlit.evaluate.check.list_families import Families
from circuitlit.report.grid import grid


def print_check(result: ModelCheck, console: Console) -> None:
    """Print an identity a row, those that do not hold in red, and where the model first differs."""
    table = grid(f"{result.model} ({result.model_type}): {result.status}", ("identity", "on"), ("differs by", "may be"))
    for one in result.identities:
        style = None if one.holds else "bold red"
        table.add_row(one.name, one.on, f"{one.difference:.1e}", f"{one.tolerance:.1e}", style=style)
    console.print(table)
    console.print(f"the model's own noise: {result.noise:.1e} of its largest logit; {result.tokens} tokens were tried")
    if result.reasons:
        console.print(f"needed because {'; '.join(result.reasons)}", soft_wrap=True, markup=False)


def print_families(result: Families, console: Console) -> None:
    """Print a model type a line."""
    for name, way in result.runs.items():
        console.print(f"{name:28} {way}", highlight=False)
    for name, reason in result.refused.items():
        console.print(f"{name:28} refused: {reason}", highlight=False, soft_wrap=True, markup=False)
