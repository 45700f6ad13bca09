"""A size curve as a table for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from circuitlit.report.grid import grid
from circuitlit.report.table import Metric, count, percent


def print_curve(curve: dict, console: Console) -> None:
    """Print one row a size, then the areas, all from result.json's `curve`."""
    title = f"faithfulness by size, {curve['ranking']} ranking, {curve['select']}, {curve['n_pairs']} pairs"
    table = grid(title, numbers=("kept", "edges", "reachable", "KL (nats)", "faithfulness"))
    for size, edges, reachable, point in zip(
        curve["sizes"], curve["n_edges"], curve["n_edges_reachable"], curve["points"], strict=True
    ):
        cells = [Metric.of(point[name]).text() for name in ("kl", "faithfulness")]
        table.add_row(percent(size), count(edges), count(reachable), *cells)
    console.print(table)
    areas = [("CPR", "cpr"), ("CMD", "cmd"), ("anchored CPR", "cpr_anchored"), ("anchored CMD", "cmd_anchored")]
    console.print(Text(", ".join(f"{name} {Metric.of(curve[key])}" for name, key in areas)), soft_wrap=True)
