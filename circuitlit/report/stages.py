"""Stages in words: when they begin, and which boundaries are not beyond chance."""

from __future__ import annotations

from dataclasses import dataclass

from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE
from circuitlit.timeline.chance import NOT_BEYOND, UNDECIDED
from circuitlit.timeline.labels import NAMES
from circuitlit.timeline.mask_timeline import MaskTimeline
from circuitlit.timeline.stages import Boundary, Timeline

STAGE_COLOURS: dict[str, str] = dict(zip(NAMES, (GREY, ORANGE, BLUE, GREEN), strict=True))


@dataclass(frozen=True)
class StageRow:
    """A stage as the page's buttons and tables say it.

    Attributes:
        name: as it is shown, without underscores.
        colour: of its band.
        observed: False leaves the rest empty.
        first, last: training steps.
        start, end: steps with intervals and p in words.
        snapshot: number of the snapshot at which it starts.
        p: of the boundary that it starts with; None where it starts with the run.
    """

    name: str
    colour: str
    observed: bool
    first: int = 0
    last: int = 0
    start: str = ""
    end: str = ""
    snapshot: int = 0
    p: float | None = None


def stage_rows(evolution: MaskTimeline) -> list[StageRow]:
    """All four stages; the ones that were not observed, too."""
    rows = []
    for stage in evolution.stages.stages:
        name, colour = stage.name.replace("_", " "), STAGE_COLOURS[stage.name]
        if stage.start is None or stage.end is None:
            rows.append(StageRow(name, colour, False))
            continue
        texts = (boundary_text(stage.start), boundary_text(stage.end))
        place = evolution.steps.index(stage.start.step)
        rows.append(StageRow(name, colour, True, stage.start.step, stage.end.step, *texts, place, stage.start.p))
    return rows


def doubtful(stages: Timeline) -> list[Boundary]:
    """Change points that were tested and are not beyond chance."""
    return [point for point in stages.change_points if point.status in (NOT_BEYOND, UNDECIDED)]


def boundary_text(at: Boundary) -> str:
    """`780 [765, 795], schedule, p .005`."""
    interval = f" [{at.low:,}, {at.high:,}]" if at.high > at.low else ""
    chance = "" if at.p is None else f", p {at.p:.3f}"
    return f"{at.step:,}{interval}{', schedule' if at.mark else ''}{chance}"


def doubtful_text(stages: Timeline) -> str:
    """The change points that are not beyond chance, in one sentence; empty where there are none."""
    points = [f"step {boundary_text(point)}, {point.status}" for point in doubtful(stages)]
    return f"Change points that make no stage: {'; '.join(points)}." if points else ""


def stages_text(stages: Timeline) -> str:
    """Stages with their steps in one line, and what is not beyond chance."""
    seen = [
        f"{stage.name.replace('_', ' ')} {boundary_text(stage.start)} to {boundary_text(stage.end)}"
        for stage in stages.stages
        if stage.start is not None and stage.end is not None
    ]
    tested = all(point.status for point in stages.change_points)  # those of an older version were not
    untested = "" if tested else " (not compared with chance)"
    return " ".join(["stages:", ("; ".join(seen) or stages.verdict) + untested + ".", doubtful_text(stages)]).strip()
