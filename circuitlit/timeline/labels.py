"""Which stage every piece of a run is: progress, the rules that a label would break, the labels that break least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from circuitlit.timeline.segment import Segmentation

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
        overlap: chance-corrected overlap with the final circuit, 1 is the same; it only tells what has converged.
        others: more signals that help to find change points.
        distance: to the previous snapshot's circuit; where given, change points are read off it in place of the
            velocity, whose noise varies with the time between snapshots.
        ends: level at the very start and end where they are known without noise; None estimates them.
        velocity_floor: velocity that is nothing but noise (95th percentile of a null distribution).
        overlap_floor: distance to the final circuit that is nothing but noise (likewise).
    """

    steps: Sequence[int]
    level: Series
    velocity: Series
    overlap: Series
    others: Mapping[str, Series] = field(default_factory=dict)
    distance: Series | None = None
    ends: tuple[float, float] | None = None
    velocity_floor: float = 0.0
    overlap_floor: float = 0.05

    def matrix(self) -> Float[np.ndarray, "snapshot signal"]:
        """What change points are read off, level first.

        Not the overlap: it ends at 1 by construction, whatever the circuits do.
        """
        change = self.velocity if self.distance is None else self.distance
        return np.stack([self.level, change, *self.others.values()], 1).astype(float)


def progress_of(signals: Signals, parts: Segmentation) -> Series | None:
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


def label_costs(signals: Signals, parts: Segmentation, progress: Series) -> Float[np.ndarray, "piece 4"]:
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


def best_labels(costs: Float[np.ndarray, "piece 4"]) -> list[int]:
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
