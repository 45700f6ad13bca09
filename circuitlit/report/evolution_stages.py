"""The stages of a model's training as tables in the terminal."""

from __future__ import annotations

from rich.console import Console

from circuitlit.report.grid import grid
from circuitlit.report.timeline import boundary_p, boundary_step
from circuitlit.timeline.chance import BEYOND
from circuitlit.timeline.evolution import Evolution


def print_evolution_stages(found: Evolution, console: Console) -> None:
    """Print the four stages of every training run and task, with what the circuits did in each."""
    for series in found.series:
        for task, entry in series.tasks.items():
            rows, stages = {row.step: row for row in entry.rows}, entry.stages
            title = f"{series.name}, {task}: {stages.verdict}, {len(rows)} checkpoints to step {max(rows, default=0)}"
            table = grid(title, ("stage",), ("start", "p", "end", "accuracy", "overlap with the end"))
            for stage in stages.stages:
                if stage.start is None or stage.end is None:
                    table.add_row(stage.name, "not observed")
                    continue
                first, last = rows[stage.start.step], rows[stage.end.step]
                accuracies = [row.behaviour.accuracy.value for row in (first, last)]
                said = " to ".join("-" if value is None else f"{value:.3f}" for value in accuracies)
                overlaps = [row.likeness.last.corrected_jaccard for row in (first, last)]
                alike = f"{overlaps[0]:.3f} to {overlaps[1]:.3f}"
                table.add_row(
                    stage.name,
                    boundary_step(stage.start),
                    boundary_p(stage.start),
                    boundary_step(stage.end),
                    said,
                    alike,
                )
            console.print(table)
            for point in stages.change_points:
                if point.status != BEYOND:
                    text = f"  no stage begins at step {boundary_step(point)}: {point.status}, p {boundary_p(point)}"
                    console.print(text, highlight=False)
