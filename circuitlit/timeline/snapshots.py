"""The circuits that a mask run's snapshots would be cut to, compared with each other; works live and on saved runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.discover.gates import Gates, HardConcrete
from circuitlit.discover.schedule import Schedule
from circuitlit.evaluate.similarity import corrected_overlap
from circuitlit.graph import MaskLayout
from circuitlit.timeline.labels import Signals
from circuitlit.timeline.segment import largest_gains
from circuitlit.timeline.stages import Timeline, find_stages
from circuitlit.timeline.walks import best_edges, level_and_velocity, walks

UNDECIDED = 2.0  # log-alpha
MOST = 100_000  # masks that stages are read off
BINS = np.arange(-10, 10.5, 0.5)  # of log-alphas


@dataclass
class Snapshots:
    """The circuits that a run's snapshots would be cut to; grows while the run goes on.

    Stages are read off at most `MOST` masks, drawn at random: such a sample is itself a run under the same schedule,
    and its overlaps are those of all masks within a few hundredths.

    Attributes:
        layout: the masks' order.
        count: edges to keep.
        schedule: how the run goes.
        target: share of edges that are going to be cut.
        gates: the masks' family.
        steps, kept, sure, undecided: of every snapshot: its step, its edges, whether no ties decided them, its share of
            undecided gates.
        sample: log-alphas of the masks that stages are read off, of every snapshot.
        counts: gates of every snapshot in each of `BINS`; the outer ones hold what lies beyond, too.
        opened: expected share of edges kept at every snapshot, under that step's noise.
    """

    layout: MaskLayout
    count: int
    schedule: Schedule
    target: float
    gates: Gates = field(default_factory=HardConcrete)
    steps: list[int] = field(default_factory=list)
    kept: list[Bool[np.ndarray, "mask"]] = field(default_factory=list)
    sure: list[bool] = field(default_factory=list)
    undecided: list[float] = field(default_factory=list)
    sample: list[Float[np.ndarray, "sampled"]] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)

    def add(self, step: int, masks: Float[Tensor, "mask"]) -> bool:
        """Take in the log-alphas of a snapshot, on the CPU; False if it is not later than the last one."""
        if self.steps and step <= self.steps[-1]:
            return False
        self.counts.append(np.histogram(masks.clamp(BINS[0], BINS[-1]).numpy(), BINS)[0].tolist())
        opened = self.gates.open_probability(masks, self.schedule.noise(step))
        self.opened.append(float(self.layout.share(opened)))
        log_alpha = self.layout.weakest(masks).flatten().numpy()  # one number an edge
        kept, sure = best_edges(log_alpha, self.count)
        self.steps.append(step)
        self.kept.append(kept)
        self.sure.append(sure)
        self.undecided.append(float((np.abs(log_alpha) < UNDECIDED).mean()))
        chosen = np.random.default_rng(0).choice(len(log_alpha), MOST, replace=False) if len(log_alpha) > MOST else ...
        self.sample.append(log_alpha[chosen].astype(np.float32))
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
        return level_and_velocity(self.kept, self.steps, self.schedule.steps, self.sure)[1]

    def knots(self) -> dict[str, float | None]:
        """Steps at which the schedule changes by itself.

        The sparsity target is reached; the noise begins to shrink; steps begin to run the circuit itself; the learning
        rate is at its height; it has fallen half of its way down, where it falls fastest.
        """
        schedule = self.schedule
        warms = schedule.start_sparsity is not None and schedule.warmup > 0
        return {
            "warmup_end": schedule.warmup * schedule.steps if warms else None,
            "harden_start": (1 - schedule.harden) * schedule.steps if schedule.harden > 0 else None,
            "hard_start": (1 - schedule.hard) * schedule.steps if schedule.hard > 0 else None,
            "lr_height": schedule.lr_warmup if schedule.lr_warmup else None,
            "lr_half": (schedule.steps + schedule.lr_warmup) / 2 if schedule.lr_final < 1 else None,
        }

    def timeline(self, resamples: int = 200, draws: int = 0) -> Timeline:
        """The stages, as far as the run has come.

        Args:
            resamples: for the intervals.
            draws: walks that the boundaries are compared with; 0 tests nothing.
        """
        if len(self.steps) < 2:
            return Timeline("too few snapshots", n_snapshots=len(self.steps))
        size = len(self.sample[0])
        count = max(1, round(self.count * size / len(self.kept[0])))
        whole = size == len(self.kept[0])
        kept = self.kept if whole else [best_edges(values, count)[0] for values in self.sample]
        about = self.steps, self.schedule.steps, self.sure
        level, velocity = level_and_velocity(kept, *about)
        signals = Signals(self.steps, level, velocity, level, ends=(float(level[0]), 1.0))
        knots = [knot for knot in self.knots().values() if knot is not None]
        if not draws:
            return find_stages(signals, knots, resamples)
        return find_stages(
            signals, knots, resamples, lambda _: [largest_gains(walks(np.stack(self.sample), count, *about, draws))]
        )
