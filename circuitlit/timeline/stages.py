"""The four stages of a run, read off its signals: initialization, rapid learning, fine-tuning, convergence.

Pieces between change points (`segment.py`) are given labels from left to right, so that they break the rules least:

- initialization: progress p ends below .1;
- rapid_learning: p goes from .1 to .9, faster than on average;
- fine_tuning: p is at .9 or above, and the circuit still changes;
- convergence: p stands still, the circuit does not change, and it is the final one, to the end of the run.

Any stage may be missing. No stage has a range of steps laid down for it, and where the change from first to last
snapshot does not stand out of the noise, the verdict is "no learning" and there are no stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Float

from circuitlit.timeline.segment import SHORTEST, Segmentation, segment

NAMES = ("initialization", "rapid_learning", "fine_tuning", "convergence")
EARLY, LATE = 0.1, 0.9  # progress that ends initialization and begins fine-tuning
STILL = 0.05  # share of the fastest piece's velocity that counts as none; share of progress that counts as none
STANDS_OUT = 3.0  # standard errors
BROKEN = 0.25  # what a rule without a scale of its own costs, in units of progress

Series = Float[np.ndarray, "snapshot"]


@dataclass(frozen=True)
class Signals:
    """What stages are read from, one value a snapshot.

    Attributes:
        steps: training steps, rising.
        level: what is learned: a task metric, or the overlap with the final circuit; any unit, either direction.
        velocity: how fast the circuit changes: distance to the previous snapshot's by time; at least 0.
        overlap: chance-corrected overlap with the final circuit, 1 is the same.
        others: more signals that help to find change points.
        ends: level at the very start and end where they are known without noise; None estimates them.
        velocity_floor: velocity that is nothing but noise (95th percentile of a null distribution).
        overlap_floor: distance to the final circuit that is nothing but noise (likewise).
    """

    steps: Sequence[int]
    level: Series
    velocity: Series
    overlap: Series
    others: Mapping[str, Series] = field(default_factory=dict)
    ends: tuple[float, float] | None = None
    velocity_floor: float = 0.0
    overlap_floor: float = 0.05

    def matrix(self) -> Float[np.ndarray, "snapshot signal"]:
        """The signals side by side, level first; overlap only where it is not the level."""
        columns = [self.level, self.velocity, *self.others.values()]
        if self.overlap is not self.level:
            columns.append(self.overlap)
        return np.stack(columns, 1).astype(float)


@dataclass(frozen=True)
class Boundary:
    """A step at which the run changes: the first snapshot of what follows, and its 95 % interval.

    Attributes:
        step, low, high: training steps.
        mark: "schedule" where a knot of the schedule is no further than one snapshot away; None elsewhere.
    """

    step: int
    low: int
    high: int
    mark: str | None = None


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
        verdict: "learning", "no learning", or "too few snapshots".
        stages: always four, in order.
        change_points: all of them; between stages and within.
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


def find_stages(signals: Signals, knots: Sequence[float] = (), resamples: int = 200) -> Timeline:
    """Segment the signals and label the pieces.

    Args:
        signals: one run's.
        knots: steps at which the run's schedule changes by itself.
        resamples: for the intervals; 0 for none.
    """
    steps = list(signals.steps)
    if len(steps) < 2 * SHORTEST:
        return Timeline("too few snapshots", n_snapshots=len(steps))
    parts = segment(signals.matrix(), resamples)
    points = _change_points(steps, parts, knots)
    progress = _progress(signals, parts)
    if progress is None:
        return Timeline("no learning", criterion=parts.criterion, n_snapshots=len(steps))
    first = Boundary(steps[0], steps[0], steps[0])
    last = Boundary(steps[-1], steps[-1], steps[-1])
    labels = _best_labels(_costs(signals, parts, progress))
    edges = [first, *points, last]
    stages = []
    for label, name in enumerate(NAMES):
        own = [piece for piece, given in enumerate(labels) if given == label]
        stages.append(Stage(name, edges[own[0]], edges[own[-1] + 1]) if own else Stage(name))
    return Timeline("learning", tuple(stages), tuple(points), parts.criterion, len(steps))


def _change_points(steps: list[int], parts: Segmentation, knots: Sequence[float]) -> list[Boundary]:
    intervals = parts.intervals or tuple((place, place) for place in parts.change_points)
    points = []
    for place, (low, high) in zip(parts.change_points, intervals, strict=True):
        before, after = steps[place - 1], steps[min(place + 1, len(steps) - 1)]
        mark = "schedule" if any(before <= knot <= after for knot in knots) else None
        points.append(Boundary(steps[place], steps[low], steps[high], mark))
    return points


def _progress(signals: Signals, parts: Segmentation) -> Series | None:
    """The fitted level, 0 at the start and 1 at the end; None where the change does not stand out of the noise."""
    fitted, deviation = parts.fitted[:, 0], float(parts.deviation[0])
    if signals.ends is not None:
        start, end = signals.ends
        if abs(end - start) <= signals.overlap_floor:
            return None
        return (fitted - start) / (end - start)
    sizes = [end - first for first, end in (parts.pieces()[0], parts.pieces()[-1])]
    inflation = (1 + parts.coefficient) / (1 - parts.coefficient)
    # variance of a fitted line at its end; no worse than that of the value itself
    errors = [deviation * min(1.0, inflation * (4 * m - 2) / (m * (m + 1))) ** 0.5 for m in sizes]
    start = _unless_far(float(fitted[0]), float(signals.level[0]), deviation)
    end = float(fitted[-1])
    if abs(end - start) <= max(STANDS_OUT * float(np.hypot(*errors)), 1e-12):
        return None
    return (fitted - start) / (end - start)


def _unless_far(fitted: float, value: float, deviation: float) -> float:
    """The fitted start, or the first value where it is far from it: a task solved before the second snapshot."""
    return value if abs(value - fitted) > STANDS_OUT * deviation else fitted


def _costs(signals: Signals, parts: Segmentation, progress: Series) -> Float[np.ndarray, "piece 4"]:
    """How badly every piece breaks the rules of every label, in units of progress times snapshots."""
    medians = [float(np.median(signals.velocity[i:j])) for i, j in parts.pieces()]
    still = max(signals.velocity_floor, STILL * max(medians))
    average = 1 / len(progress)
    rows = []
    for (i, j), velocity in zip(parts.pieces(), medians, strict=True):
        p = progress[i:j]
        change = float(p[-1] - p[0])
        slope = change / (j - i - 1)
        late = np.maximum(0, LATE - p).mean()
        initialization = np.maximum(0, p - EARLY).mean()
        outside = (np.maximum(0, EARLY - p) + np.maximum(0, p - LATE)).mean()
        rapid = outside + BROKEN * float(np.clip(1 - slope / average, 0, 1))
        tuning = late + BROKEN * (velocity <= still)
        final = float(np.median(signals.overlap[i:j])) >= 1 - signals.overlap_floor
        stands = abs(change) <= max(STILL, _uncertainty(parts, i, j, progress))
        converged = late if velocity <= still and final and stands else np.inf
        rows.append([(j - i) * cost for cost in (initialization, rapid, tuning, converged)])
    return np.array(rows)


def _uncertainty(parts: Segmentation, first: int, end: int, progress: Series) -> float:
    """Half of the 95 % interval of a piece's change in progress."""
    size = end - first
    unit = abs(float(progress[-1] - progress[0])) / max(abs(float(parts.fitted[-1, 0] - parts.fitted[0, 0])), 1e-12)
    inflation = (1 + parts.coefficient) / (1 - parts.coefficient)
    return 1.96 * unit * float(parts.deviation[0]) * (12 * inflation * (size - 1) / (size * (size + 1))) ** 0.5


def _best_labels(costs: Float[np.ndarray, "piece 4"]) -> list[int]:
    """The cheapest labels that never go back."""
    total, came_from = costs[0].copy(), []
    for row in costs[1:]:
        source = [int(np.argmin(total[: label + 1])) for label in range(len(NAMES))]
        came_from.append(source)
        total = total[source] + row
    labels = [int(np.argmin(total))]
    for source in reversed(came_from):
        labels.append(source[labels[-1]])
    return labels[::-1]
