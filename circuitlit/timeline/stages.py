"""The four stages of a run, read off its signals: initialization, rapid learning, fine-tuning, convergence.

Signals are cut into straight pieces (`segment.py`). A boundary between two pieces counts only where it is beyond chance
(`chance.py`); pieces on the two sides of any other are joined. What is left is given labels from left to right, so that
they break the rules least:

- initialization: progress p ends below .1;
- rapid_learning: p goes from .1 to .9, faster than on average;
- fine_tuning: p is at .9 or above, and the circuit still changes;
- convergence: p stands still, the circuit does not change, and it is the final one, to the end of the run.

Any stage may be missing, and no stage has a range of steps laid down for it. There are no stages where no boundary is
beyond chance, or where the change from first to last snapshot does not stand out of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitlit.plain_types import converter_of
from circuitlit.timeline.chance import BEYOND, NOT_BEYOND, UNDECIDED, Chance, Null, chances
from circuitlit.timeline.intervals import intervals
from circuitlit.timeline.labels import NAMES, Signals, best_labels, label_costs, progress_of
from circuitlit.timeline.pieces import SHORTEST
from circuitlit.timeline.segment import Segmentation, partitioned, segment


@dataclass(frozen=True)
class Boundary:
    """A step at which the run changes: the first snapshot of what follows, and its 95 % interval.

    Attributes:
        step, low, high: training steps.
        mark: "schedule" where a knot of the schedule is no further than one snapshot away; None elsewhere.
        p, p_walk, draws, status: see `Chance`; None and 0 where nothing was tested: at the run's own start and end, and
            while it goes on.
    """

    step: int
    low: int
    high: int
    mark: str | None = None
    p: float | None = None
    p_walk: float | None = None
    draws: int = 0
    status: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage; `start` and `end` are None where it was not observed, and `end` is the next stage's start."""

    name: str
    start: Boundary | None = None
    end: Boundary | None = None

    @property
    def observed(self) -> bool:
        """True where the run has this stage."""
        return self.start is not None


@dataclass(frozen=True)
class Timeline:
    """The stages of a run.

    Attributes:
        verdict: "learning" where there are stages; else "not beyond chance" (no boundary is), "undecided" (some might
            be), "no learning" (the level's change does not stand out of the noise) or "too few snapshots".
        stages: always four, in order.
        change_points: all of them, those that are not beyond chance, too; between stages and within.
        criterion: of 1, 2 ... pieces (see `Segmentation`): how well four describe the run is for the reader to judge.
        n_snapshots: how many there were.
    """

    verdict: str
    stages: tuple[Stage, ...] = tuple(Stage(name) for name in NAMES)
    change_points: tuple[Boundary, ...] = ()
    criterion: tuple[float, ...] = ()
    n_snapshots: int = 0

    @property
    def current(self) -> str | None:
        """The stage at the last snapshot."""
        seen = [stage.name for stage in self.stages if stage.observed]
        return seen[-1] if seen else None

    def starts(self) -> dict[str, int]:
        """First step of each observed stage."""
        return {stage.name: stage.start.step for stage in self.stages if stage.start is not None}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Timeline:
        """What `to_dict` made plain; boundaries of older versions were not compared with chance."""
        return converter_of(cls).validate_python(content)

    def boundaries(self) -> list[Boundary]:
        """Where one stage gives way to the next, without the run's own start and end."""
        return [stage.start for stage in self.stages if stage.start is not None][1:]

    def to_dict(self) -> dict[str, object]:
        """Plain types for result.json."""
        stages = [{"name": stage.name, "observed": stage.observed, **_boundaries(stage)} for stage in self.stages]
        return {
            "verdict": self.verdict,
            "stages": stages,
            "change_points": [asdict(point) for point in self.change_points],
            "criterion": list(self.criterion),
            "n_snapshots": self.n_snapshots,
        }


def _boundaries(stage: Stage) -> dict[str, object]:
    return {name: None if at is None else asdict(at) for name, at in (("start", stage.start), ("end", stage.end))}


def find_stages(
    signals: Signals, knots: Sequence[float] = (), resamples: int = 200, null: Null | None = None
) -> Timeline:
    """Segment the signals, test the boundaries and label the pieces.

    Args:
        signals: one run's.
        knots: steps at which the run's schedule changes by itself.
        resamples: for the intervals; 0 for none.
        null: what runs without stages look like; None tests nothing, and every boundary counts.
    """
    steps = list(signals.steps)
    if len(steps) < 2 * SHORTEST:
        return Timeline("too few snapshots", n_snapshots=len(steps))
    matrix = signals.matrix()
    parts = segment(matrix)
    found = None if null is None or not parts.change_points else chances(parts, null)
    around = intervals(matrix, parts, resamples)
    points = _change_points(steps, parts, around, found, knots)
    about = {"change_points": points, "criterion": parts.criterion, "n_snapshots": len(steps)}
    if progress_of(signals, parts) is None:
        return Timeline("no learning", **about)
    if null is not None:
        kept = tuple(at for at, point in zip(parts.change_points, points, strict=True) if point.status == BEYOND)
        if not kept:
            unclear = any(point.status == UNDECIDED for point in points)
            return Timeline(UNDECIDED if unclear else NOT_BEYOND, **about)
        parts = partitioned(matrix, kept, (), ())
        points = tuple(point for point in points if point.status == BEYOND)
    progress = progress_of(signals, parts)
    if progress is None:
        return Timeline("no learning", **about)
    labels = best_labels(label_costs(signals, parts, progress))
    edges = [Boundary(steps[0], steps[0], steps[0]), *points, Boundary(steps[-1], steps[-1], steps[-1])]
    return Timeline("learning", _stages(labels, edges), **about)


def _stages(labels: Sequence[int], edges: Sequence[Boundary]) -> tuple[Stage, ...]:
    stages = []
    for label, name in enumerate(NAMES):
        own = [piece for piece, given in enumerate(labels) if given == label]
        stages.append(Stage(name, edges[own[0]], edges[own[-1] + 1]) if own else Stage(name))
    return tuple(stages)


def _change_points(
    steps: list[int],
    parts: Segmentation,
    around: Sequence[tuple[int, int]],
    found: Sequence[Chance] | None,
    knots: Sequence[float],
) -> tuple[Boundary, ...]:
    points = []
    for number, place in enumerate(parts.change_points):
        before, after = steps[place - 1], steps[min(place + 1, len(steps) - 1)]
        mark = "schedule" if any(before <= knot <= after for knot in knots) else None
        low, high = around[number]
        chance = {} if found is None else asdict(found[number])
        points.append(Boundary(steps[place], steps[low], steps[high], mark, **chance))
    return tuple(points)
