"""`explanation.json` in the terminal."""

from __future__ import annotations

from rich.console import Console

from circuitlit.heads.explain.explanation import Explanation, Likely
from circuitlit.report.grid import grid
from circuitlit.report.leading import print_leading


def print_explanation(result: Explanation, console: Console) -> None:
    """Print what is likeliest on each example, and the leading nodes."""
    table = grid(f"{result.task} on {result.model}", ("prompt", "answer", "full model", "circuit", "ablated"))
    for one in result.examples:
        said = (_said(getattr(one, name)) for name in ("full", "circuit", "ablated"))
        table.add_row("".join(one.clean), one.answer, *said)
    console.print(table)
    if result.nodes is not None:
        print_leading(result.nodes, console)


def _said(likely: list[Likely]) -> str:
    return f"{likely[0].token} {likely[0].probability:.2f}"
