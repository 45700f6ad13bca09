"""What watching a circuit over somebody's training gives, as `watch.json` holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from circuitlit.evaluate import Estimate
from circuitlit.result import Result
from circuitlit.timeline.cells import MeasuredCircuit, TaskAtCheckpoint
from circuitlit.timeline.series import Alike
from circuitlit.timeline.stages import Timeline

WATCHED, DRIFT = "OK", "DRIFT"
UNSTAGED = Timeline("too few snapshots")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where drift begins; None sounds no alarm.

    What is not given comes from the start: exchanging the pairs for others like them moves each figure, and only what
    moves further than that is drift.

    Attributes:
        overlap: J* with the circuit found at the start, least; the lowest J* of circuits found at the start on two
            resamples of the training pairs.
        faithfulness: of the start circuit, least; its value at the start less the 99th percentile of the distance
            between two resamples of the test pairs.
        accuracy, metric: of the model on the clean prompts, least; as faithfulness.
        text_kl: KL(start || now) on other text, most, nats a token. It is 0 at the start however pairs are resampled,
            so there is no such limit unless you give one.
    """

    overlap: float | None = None
    faithfulness: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    text_kl: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A figure beyond its limit; `value` is None where weights are no numbers any more (signal "weights")."""

    signal: str
    value: float | None
    limit: float | None

    def __str__(self) -> str:
        if self.value is None or self.limit is None:
            return f"{self.signal}: not finite"
        return f"{self.signal} {self.value:.3f} (limit {self.limit:.3f})"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The circuit at one step of the training.

    Attributes:
        step: optimizer steps behind it.
        cell: the model's behaviour on the pairs, and the circuit found anew in its weights.
        start: the start circuit, run in these weights on the test pairs.
        alike_start: the circuit found anew beside the one found at the start by the same attribution.
        alike_given: beside the circuit that was given; None where none was.
        alike_previous: beside the one of the reading before: turnover; None at the first.
        text_kl: KL(model at the start || now) on other text, nats a token; None where it was left out.
        alarms: what is beyond its limit.
        seconds: that the reading took.
    """

    step: int
    cell: TaskAtCheckpoint
    start: MeasuredCircuit
    alike_start: Alike
    alike_given: Alike | None = None
    alike_previous: Alike | None = None
    text_kl: Estimate | None = None
    alarms: list[Alarm] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """What loggers get, by name; figures that do not exist are left out."""
        before = self.alike_previous
        found: dict[str, float | None] = {
            "faithfulness": self.start.faithfulness.value,
            "overlap": self.alike_start.corrected_jaccard,
            "overlap_given": self.alike_given and self.alike_given.corrected_jaccard,
            "overlap_before": before and before.corrected_jaccard,
            "edges_changed": before and before.edges_changed,
            "accuracy": self.cell.behaviour.accuracy.value,
            "metric": self.cell.behaviour.metric.value,
            "text_kl": self.text_kl and self.text_kl.value,
            "alarms": float(len(self.alarms)),
            "seconds": self.seconds,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A step at which nothing could be read, and why."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, repr=False)
class WatchedCircuit(Result):
    """What `watch_checkpoints` and the callbacks find.

    Attributes:
        status: "OK", or "DRIFT" where an alarm sounded.
        reason: of the first alarm.
        model, task, method: what was watched, and how circuits are found anew.
        circuit: "found" at the start, or "given".
        n_edges: of the start circuit, and of each that is found anew.
        n_edges_total: of the graph.
        n_pairs: training pairs that circuits are found on, and test pairs that they are measured on.
        limits: of all figures.
        readings: first step first.
        unread: what could not be read.
        stages: of the training, read off the readings.
        training_seconds: of the training alone; None after the fact.
        cost: seconds of all readings as a share of that.
        stopped: True where an alarm ended the training.
    """

    schema: ClassVar[str] = "watch"
    file: ClassVar[str] = "watch.json"

    status: str = WATCHED
    reason: str | None = None
    model: str
    task: str
    method: str
    circuit: str
    n_edges: int
    n_edges_total: int
    n_pairs: tuple[int, int]
    limits: Limits
    readings: list[Reading]
    unread: list[Unread] = field(default_factory=list)
    stages: Timeline = UNSTAGED
    training_seconds: float | None = None
    cost: float | None = None
    stopped: bool = False

    @property
    def alarms(self) -> list[tuple[int, Alarm]]:
        """All alarms with their steps."""
        return [(one.step, alarm) for one in self.readings for alarm in one.alarms]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a reading."""
        for one in self.readings:
            yield {"step": one.step, **one.figures()}
