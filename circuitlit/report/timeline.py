"""Timelines of mask runs as tables in the terminal, and whether several agree."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from circuitlit.report.grid import grid
from circuitlit.timeline.agreement import TimelineAgreement
from circuitlit.timeline.chance import BEYOND
from circuitlit.timeline.mask_timeline import MaskTimeline
from circuitlit.timeline.stages import Boundary


def print_timeline(found: MaskTimeline, name: str, console: Console) -> None:
    """Print a run's stages, the schedule's knots, and the change points at which no stage begins."""
    steps, final, timeline = found.steps, found.overlap_final, found.stages
    title = f"{name}: {timeline.verdict}, {len(steps)} snapshots to step {steps[-1]} of {found.schedule.steps}"
    table = grid(title, ("stage",), ("start", "p", "end", "overlap with the end", "edges changed"))
    for stage in timeline.stages:
        if stage.start is None or stage.end is None:
            table.add_row(stage.name, "not observed")
            continue
        first, last = steps.index(stage.start.step), steps.index(stage.end.step)
        changed = sum(number or 0 for number in found.churn[first + 1 : last + 1])
        overlaps = f"{final[first]:.3f} to {final[last]:.3f}"
        table.add_row(
            stage.name,
            boundary_step(stage.start),
            boundary_p(stage.start),
            boundary_step(stage.end),
            overlaps,
            str(changed),
        )
    console.print(table)
    known = found.schedule.knots.items()
    knots = [f"{knot.replace('_', ' ')} at step {at:.0f}" for knot, at in known if at is not None]
    console.print(f"  schedule: {', '.join(knots) or 'no knots'}; * within one snapshot of one", highlight=False)
    for point in timeline.change_points:
        if point.status != BEYOND:
            console.print(
                f"  no stage begins at step {boundary_step(point)}: {point.status}, p {boundary_p(point)}",
                highlight=False,
            )


def boundary_step(at: Boundary) -> str:
    """`780 [765, 795]*`: the star for a knot of the schedule."""
    interval = f" [{at.low}, {at.high}]" if at.high > at.low else ""
    return f"{at.step}{interval}{'*' if at.mark else ''}"


def boundary_p(at: Boundary) -> str:
    """Its p, or a dash."""
    return "-" if at.p is None else f"{at.p:.3f}"


def print_agreement(result: TimelineAgreement, console: Console) -> None:
    """Print when each stage starts in each run, and whether repetitions agree."""
    names = [Path(name).name for name in result.runs]
    runs = [name if own else f"{name} (other schedule)" for name, own in zip(names, result.repetitions, strict=True)]
    table = grid("start of each stage (step)", ("stage",), (*runs, "repetitions"))
    for row in result.starts:
        starts = [
            f"{'-' if start is None else start}{'' if moved is None else f', {moved}'}"
            for start, moved in zip(row.starts, row.moved, strict=True)
        ]
        table.add_row(row.stage, *starts, row.verdict)
    console.print(table)
