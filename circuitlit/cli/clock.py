"""What a verb says while it works, and how long each phase took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import track

from circuitlit.cli.ranks import is_writer
from circuitlit.errors import Stopped

CONSOLE = Console(quiet=not is_writer())


class Clock:
    """Prints what is being done and remembers how long it took.

    Attributes:
        seconds: of each finished phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Time a phase."""
        CONSOLE.print(f"[bold]{text}[/bold] ...", highlight=False)
        started = time.perf_counter()
        try:
            yield
        except Stopped as stop:
            stop.during = stop.during or (name, text)
            raise
        self.seconds[name] = time.perf_counter() - started
        CONSOLE.print(f"  {self.seconds[name]:.1f} s", style="dim", highlight=False)

    def times(self) -> dict[str, object]:
        """The seconds in all and by phase, for a result."""
        return {"seconds": sum(self.seconds.values()), "seconds_by_phase": self.seconds}


def watched(items: Sequence[Any], text: str) -> Iterator[Any]:
    """The items one by one, with a bar in a terminal and a line at every quarter elsewhere."""
    if CONSOLE.is_terminal:
        yield from track(items, f"  {text}", console=CONSOLE, transient=True)
        return
    quarter = -(-len(items) // 4)
    for number, item in enumerate(items):
        if number and number % quarter == 0:
            CONSOLE.print(f"  {text}: {number} of {len(items)}", style="dim", highlight=False)
        yield item
