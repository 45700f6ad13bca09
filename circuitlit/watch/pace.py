"""When to read, so that all readings together cost at most a share of the training's time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

SHARE = 0.05
FIRST = 5  # steps from the start until a step's seconds are known
READING = 0.8  # of the share; the rest is for the evolution and the page at the end
MOST = 200  # readings of a run, on average over its steps


@dataclass
class Pace:
    """Seconds of steps and readings so far, and the next step at which to read.

    Attributes:
        last: step at which training ends; None where nobody knows.
        every: steps between readings; None lets `share` decide.
        share: of the training's seconds that all readings may cost.
        readings, reading: how many there were, and the seconds of the last one.
        spent: seconds of all.
        due: next step at which to read, or only to plan.
        plans: True where `due` is only for planning.
    """

    last: int | None = None
    every: int | None = None
    share: float = SHARE
    readings: int = 0
    reading: float = 0.0
    spent: float = 0.0
    due: int = 0
    plans: bool = False
    _begun: float | None = None
    _away: float = 0.0  # seconds of readings since `_begun`
    _from: int = 0
    _now: float = field(default_factory=time.perf_counter)

    def begin(self, step: int) -> None:
        """Training stands at this step, and the first reading, if there was one, is done."""
        self._from = step
        if self.every is not None:
            self.due = (step // self.every + 1) * self.every
        else:
            self.due, self.plans = step + FIRST, True

    def stepped(self, step: int) -> None:
        """A step has ended. The first one is not counted: much is made ready in it."""
        if self._begun is None:
            self._begun, self._from, self._away = time.perf_counter(), step, 0.0

    def read(self, seconds: float) -> None:
        """A reading has taken so long."""
        self.readings, self.reading, self.spent = self.readings + 1, seconds, self.spent + seconds
        self._away += seconds

    def step_seconds(self, step: int) -> float | None:
        """Of one step of the training, mean; None before it is known."""
        if self._begun is None or step <= self._from:
            return None
        return (time.perf_counter() - self._begun - self._away) / (step - self._from)

    def plan(self, step: int) -> None:
        """Set the next step to read at: as many readings as the share allows, evenly over what is left.

        The end of the training is always read, so it is provided for; where not even that is within the share, nothing
        is read before it.
        """
        self.plans = False
        if self.every is not None:
            self.due = (step // self.every + 1) * self.every
            return
        seconds = self.step_seconds(step)
        if seconds is None:
            self.due, self.plans = step + 1, True
            return
        allowed = READING * self.share * seconds  # of reading, a step
        if self.last is None:
            due = math.ceil((self.spent + self.reading) / allowed)
            self.due = max(due, step + math.ceil(self.reading / allowed))
            return
        count = int((allowed * self.last - self.spent) / max(self.reading, 1e-9))
        count = min(count, math.ceil(MOST * (self.last - step) / self.last), self.last - step)
        self.due = self.last if count < 1 else step + math.ceil((self.last - step) / count)

    def words(self, step: int) -> str:
        """What is planned, in a sentence."""
        if self.every is not None:
            return f"a reading every {self.every} steps"
        seconds = self.step_seconds(step)
        if seconds is None or not self.readings:
            return "the next reading is planned once the seconds of a step are known"
        about = f"a reading takes {self.reading:.2f} s, a step {seconds:.3f} s"
        gap = self.due - step
        if self.last is not None and self.due >= self.last:
            total = (self.spent + self.reading) / (seconds * self.last)
            more = "" if total <= self.share else f", which is {total:.0%} of so short a training"
            return f"{about}; the next reading is at the end{more} (every=N reads more often)"
        return f"{about}; a reading about every {gap} steps costs at most {self.share:.0%} of the training"
