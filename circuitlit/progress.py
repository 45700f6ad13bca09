"""What is said while an analysis works: its phases with their seconds, and how far long loops are.

Analyses call `phase` and `told`; nothing is printed unless a `Clock` runs, as it does in every command.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from circuitlit.errors import Stopped

log = logging.getLogger(__name__)
Item = TypeVar("Item")
# Of several processes the first one prints. Brackets are letters: names and folders may have some.
CONSOLE = Console(quiet=os.environ.get("RANK", "0") != "0", markup=False)
EVERY = 15.0  # seconds between two lines about a loop
_CLOCK: ContextVar[Clock | None] = ContextVar("the clock that runs", default=None)


class Clock:
    """Says what is being done and remembers how long it took, as long as its `with` block lasts.

    Attributes:
        seconds: of each finished phase.
        whole: of all that is not within another one.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.whole, self._within = 0.0, 0

    def __enter__(self) -> Self:
        self._token = _CLOCK.set(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        _CLOCK.reset(self._token)
        if isinstance(error, Stopped):  # of clocks in each other the outermost has the last word
            error.done = tuple(self.seconds)

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Time a phase."""
        self._within += 1
        try:
            CONSOLE.print(f"{text} ...", style="bold", highlight=False)
            started = time.perf_counter()
            yield
        except Stopped as stop:
            stop.during = stop.during or (name, text)
            raise
        finally:
            self._within -= 1
        self.seconds[name] = time.perf_counter() - started
        self.whole += 0 if self._within else self.seconds[name]
        CONSOLE.print(f"  {self.seconds[name]:.1f} s", style="dim", highlight=False)

    def times(self) -> dict[str, Any]:
        """The seconds in all and by phase, for a result."""
        return {"seconds": self.whole, "seconds_by_phase": self.seconds}


@contextmanager
def phase(name: str, text: str) -> Iterator[None]:
    """A part of an analysis: said and timed by the clock that runs, silent without one.

    Args:
        name: of the part, among the result's seconds.
        text: what is being done, such as "Ranking the nodes".
    """
    clock = _CLOCK.get()
    if clock is None:
        yield
        return
    with clock.phase(name, text):
        yield


@contextmanager
def part(name: str, text: str) -> Iterator[None]:
    """A phase that is an analysis of its own: the clock that runs times it whole, a new one its phases."""
    with phase(name, text):
        if _CLOCK.get() is None:
            yield
            return
        with Clock():
            yield


def times() -> dict[str, Any]:
    """Seconds of the clock that runs, in all and by phase, for a result; nothing without one."""
    clock = _CLOCK.get()
    return clock.times() if clock else {}


def say(text: str, aloud: bool = True) -> None:
    """Write a line into the run's log, and print it if `aloud` and a clock runs."""
    log.info(text)
    if aloud and _CLOCK.get():
        CONSOLE.print(f"  {text}", style="dim", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def told(items: Iterable[Item], text: str, count: int) -> Iterator[Item]:
    """The items one by one, with a line now and then that says how far it is."""
    began = spoken = time.monotonic()
    for number, item in enumerate(items):
        if number and time.monotonic() - spoken > EVERY:
            spoken = time.monotonic()
            left = (spoken - began) / number * (count - number)
            say(f"{text}: {number} of {count}, {duration(left)} left")
        yield item


def watched(items: Sequence[Item], text: str) -> Iterator[Item]:
    """The items one by one, with a bar in a terminal and a line at every quarter elsewhere."""
    if _CLOCK.get() is None:
        yield from items
        return
    if CONSOLE.is_terminal:
        yield from track(items, f"  {escape(text)}", console=CONSOLE, transient=True)
        return
    quarter = -(-len(items) // 4)
    for number, item in enumerate(items):
        if number and number % quarter == 0:
            CONSOLE.print(f"  {text}: {number} of {len(items)}", style="dim", highlight=False)
        yield item
