"""The circuits that a mask run's snapshots would be cut to, compared with each other; works live and on saved runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from circuitlit.discover import Schedule
from circuitlit.evaluate.similarity import corrected_overlap
from circuitlit.graph import Graph
from circuitlit.timeline.stages import Signals, Timeline, find_stages

UNDECIDED = 2.0  # log-alpha
PROBED = 0.9  # share of snapshots with a hard KL from which on it helps to find change points


def best_edges(log_alpha: Float[np.ndarray, "mask"], count: int) -> tuple[Bool[np.ndarray, "mask"], bool]:
    """The `count` masks of largest log-alpha, and whether they were free of ties.

    Of masks that tie for the last places some are drawn, always the same: those that start equal are a random set.
    """
    log_alpha = np.nan_to_num(log_alpha, nan=-np.inf)  # a run that went wrong is stopped elsewhere
    threshold = np.partition(log_alpha, -count)[-count]
    kept = log_alpha > threshold
    tied = np.flatnonzero(log_alpha == threshold)
    missing = count - int(kept.sum())
    if missing == len(tied):
        kept[tied] = True
        return kept, True
    kept[np.random.default_rng(0).choice(tied, missing, replace=False)] = True
    return kept, False


@dataclass
class Snapshots:
    """The circuits that a run's snapshots would be cut to; grows while the run goes on.

    Attributes:
        graph: the edges' order.
        count: edges to keep.
        schedule: how the run goes.
        roles: token roles with masks of their own.
        steps, kept, sure, undecided: of every snapshot: its step, its edges, whether no ties decided them, its share of
            undecided gates.
    """

    graph: Graph
    count: int
    schedule: Schedule
    roles: tuple[str, ...] = ()
    steps: list[int] = field(default_factory=list)
    kept: list[Bool[np.ndarray, "mask"]] = field(default_factory=list)
    sure: list[bool] = field(default_factory=list)
    undecided: list[float] = field(default_factory=list)

    def add(self, step: int, log_alpha: Float[np.ndarray, "mask"]) -> bool:
        """Take in a snapshot; False if it is not later than the last one."""
        if self.steps and step <= self.steps[-1]:
            return False
        kept, sure = best_edges(log_alpha, self.count)
        self.steps.append(step)
        self.kept.append(kept)
        self.sure.append(sure)
        self.undecided.append(float((np.abs(log_alpha) < UNDECIDED).mean()))
        return True

    def overlap(self, first: int, second: int) -> float:
        """Overlap of two snapshots."""
        shared = int(np.count_nonzero(self.kept[first] & self.kept[second]))
        return corrected_overlap(shared, self.count, self.count, len(self.kept[first]))

    def overlap_final(self) -> Float[np.ndarray, "snapshot"]:
        """Overlap of each snapshot with the last."""
        return np.array([self.overlap(at, -1) for at in range(len(self.steps))])

    def overlap_previous(self, at: int) -> float:
        """Overlap of a snapshot with the one before."""
        return self.overlap(at - 1, at)

    def churn(self, at: int) -> int:
        """Edges that went in or out since the snapshot before."""
        return int(np.count_nonzero(self.kept[at - 1] ^ self.kept[at]))

    def velocity(self) -> Float[np.ndarray, "snapshot"]:
        """Distance to the snapshot before, per hundredth of the run; not from a start that ties decided."""
        values = np.zeros(len(self.steps))
        for at in range(1, len(self.steps)):
            share = (self.steps[at] - self.steps[at - 1]) / self.schedule.steps
            values[at] = (1 - self.overlap_previous(at)) / (100 * share)
        unsure = [at for at in range(len(values)) if at == 0 or not self.sure[at - 1]]
        for at in reversed(unsure):
            values[at] = values[at + 1] if at + 1 < len(values) else 0.0
        return values

    def knots(self) -> dict[str, float | None]:
        """Steps at which the schedule changes by itself: the sparsity target is reached, the noise begins to shrink."""
        schedule = self.schedule
        warms = schedule.start_sparsity is not None and schedule.warmup > 0
        return {
            "warmup_end": schedule.warmup * schedule.steps if warms else None,
            "harden_start": (1 - schedule.harden) * schedule.steps if schedule.harden > 0 else None,
        }

    def timeline(self, hard_kl: Mapping[int, float] | None = None, resamples: int = 200) -> Timeline:
        """The stages, as far as the run has come.

        Args:
            hard_kl: by step; used where nearly every snapshot was measured.
            resamples: for the intervals.
        """
        if len(self.steps) < 2:
            return Timeline("too few snapshots", n_snapshots=len(self.steps))
        level = self.overlap_final()
        probes = [step for step in self.steps if step in (hard_kl or {})]
        others = {}
        if hard_kl and len(probes) >= PROBED * len(self.steps):
            others["hard_kl"] = np.interp(self.steps, probes, [hard_kl[step] for step in probes])
        signals = Signals(self.steps, level, self.velocity(), level, others, ends=(float(level[0]), 1.0))
        return find_stages(signals, [knot for knot in self.knots().values() if knot is not None], resamples)
