"""Do runs go through the same stages at the same time, and do the stages follow the schedule?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.result import Result
from circuitlit.timeline.chance import BEYOND, NOT_BEYOND
from circuitlit.timeline.labels import NAMES
from circuitlit.timeline.mask_timeline import MaskTimeline
from circuitlit.timeline.stages import Timeline

TOLERANCE = 0.1  # share of the steps
FEWEST = 3  # runs: steps drawn at random lie within the tolerance in 19 % of pairs, in 3 % of three

Knots = Mapping[str, float | None]


@dataclass(frozen=True)
class Agreement:
    """When one stage starts in each of several runs.

    Attributes:
        stage: its name.
        starts: step of each run, None where no boundary beyond chance starts it: a stage that begins with the run has
            no boundary either.
        verdict: of the repetitions: "agree" within a tenth of the steps, "too few runs" of such two, which chance
            often gives, "not reproducible", "not beyond chance" in any of them, or "one run".
        moved: of each run with another schedule: "with the schedule", "not with the schedule" or "unknown"; None for
            repetitions.
    """

    stage: str
    starts: tuple[int | None, ...]
    verdict: str
    moved: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class TimelineAgreement(Result):
    """What `compare_timelines` found.

    Attributes:
        runs: names, in the order of all that follows.
        repetitions: True for runs with the schedule that most runs have.
        knots: steps at which each run's schedule changes by itself.
        starts: of all stages but the first.
    """

    schema: ClassVar[str] = "timeline_agreement"
    file: ClassVar[str] = "agreement.json"

    runs: list[str]
    repetitions: list[bool]
    knots: list[dict[str, float | None]]
    starts: list[Agreement]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a stage: the step at which it starts in each run."""
        for one in self.starts:
            yield {"stage": one.stage, **dict(zip(self.runs, one.starts, strict=True)), "verdict": one.verdict}


@checks_arguments
def compare_timelines(timelines: Mapping[str, MaskTimeline]) -> TimelineAgreement:
    """Tell whether runs of `train` go through the same stages at the same time.

    Runs with the most common schedule are repetitions; of the others it is told whether their stages moved with the
    schedule.

    Args:
        timelines: by name, two or more, of runs of one length.

    Raises:
        UserError: fewer than two, of several lengths, or one of them twice.
    """
    lengths = {one.schedule.steps for one in timelines.values()}
    if len(timelines) < 2:
        raise UserError("a comparison needs two runs or more")
    if len(lengths) > 1:
        raise UserError(f"runs of {sorted(lengths)} steps cannot be compared; name runs of one length")
    seen: dict[str, str] = {}
    for name, one in timelines.items():  # a copy, a link, or the same seed again
        other = seen.setdefault(repr((one.schedule, one.overlap_final, one.churn, one.kept, one.log_alpha)), name)
        if other != name:
            raise UserError(f"{name} has the very masks of {other}: one run twice; leave one out, or take another seed")
    knots = [one.schedule.knots for one in timelines.values()]
    return TimelineAgreement(
        runs=list(timelines),
        repetitions=repetitions(knots),
        knots=knots,
        starts=agreement([one.stages for one in timelines.values()], knots, lengths.pop()),
    )


def repetitions(knots: Sequence[Knots]) -> list[bool]:
    """Which runs have the schedule that most runs have."""
    keys = [tuple(sorted(own.items())) for own in knots]
    usual = Counter(keys).most_common(1)[0][0]
    return [key == usual for key in keys]


def agreement(timelines: Sequence[Timeline], knots: Sequence[Knots], steps: int) -> list[Agreement]:
    """Compare the starts of all stages but the first.

    Args:
        timelines: of the runs.
        knots: of their schedules, steps.
        steps: length of the runs.
    """
    repeated = repetitions(knots)
    usual = knots[repeated.index(True)]
    made = []
    for name in NAMES[1:]:
        starts = [_start(timeline, name) for timeline in timelines]
        same = [start for start, own in zip(starts, repeated, strict=True) if own]
        verdict = _verdict(same, steps)
        moved = [
            None if own else _moved(start, same, verdict, _shift(at, usual), steps)
            for start, own, at in zip(starts, repeated, knots, strict=True)
        ]
        made.append(Agreement(name, tuple(starts), verdict, tuple(moved)))
    return made


def _start(timeline: Timeline, name: str) -> int | None:
    (start,) = (stage.start for stage in timeline.stages if stage.name == name)
    return start.step if start is not None and start.status == BEYOND else None


def _verdict(starts: list[int | None], steps: int) -> str:
    seen = [start for start in starts if start is not None]
    if not seen:
        return NOT_BEYOND
    if len(starts) == 1:
        return "one run"
    if len(seen) < len(starts) or max(seen) - min(seen) > TOLERANCE * steps:
        return "not reproducible"
    return "agree" if len(seen) >= FEWEST else "too few runs"


def _shift(own: Knots, usual: Knots) -> float:
    """By how many steps the knot that moved most has moved."""
    moves = [at - there for name, at in own.items() if at is not None and (there := usual.get(name)) is not None]
    return max(moves, key=abs, default=0.0)


def _moved(start: int | None, same: list[int | None], verdict: str, shift: float, steps: int) -> str:
    """A boundary follows the schedule if it moves the knot's way, half as far, and by more than repetitions differ."""
    seen = [there for there in same if there is not None]
    if start is None or verdict != "agree" or abs(shift) <= TOLERANCE * steps:
        return "unknown"
    move = start - median(seen)
    follows = move * shift > 0 and abs(move) >= max(abs(shift) / 2, max(seen) - min(seen))
    return "with the schedule" if follows else "not with the schedule"
