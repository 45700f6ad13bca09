"""How far a run is, as lines: for logs, and for terminals without a bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from lightning import Callback, LightningModule, Trainer

from circuitlit.cli.clock import CONSOLE

log = logging.getLogger(__name__)
PARTS = 20  # of a run; a line after each
EVERY = 15.0  # seconds between two lines about a loop


def say(text: str, aloud: bool = True) -> None:
    """Write a line into the run's log, and print it if `aloud`."""
    log.info(text)
    if aloud:
        CONSOLE.print(f"  {text}", style="dim", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def told(items: Iterable[Any], text: str, count: int) -> Iterator[Any]:
    """The items one by one, with a line now and then that says how far it is."""
    began = spoken = time.monotonic()
    for number, item in enumerate(items):
        if number and time.monotonic() - spoken > EVERY:
            spoken = time.monotonic()
            left = (spoken - began) / number * (count - number)
            say(f"{text}: {number} of {count}, {duration(left)} left")
        yield item


class ProgressLines(Callback):
    """A line at every twentieth of training: step, what is logged of it, time left; always in the run's log file.

    Args:
        aloud: True prints it, too.
    """

    def __init__(self, aloud: bool) -> None:
        self.aloud = aloud
        self._first = self._seen = 0
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first = self._seen = trainer.global_step
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Speak when it is time."""
        step, before, steps = trainer.global_step, self._seen, trainer.max_steps
        self._seen = step
        if not trainer.is_global_zero or step * PARTS // steps == before * PARTS // steps:
            return
        left = (time.monotonic() - self._began) / (step - self._first) * (steps - step)
        logged = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        figures = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in logged.items()]
        words = [f"{100 * step // steps} %: step {step} of {steps}", *figures, f"{duration(left)} left"]
        say(", ".join(words), self.aloud)
