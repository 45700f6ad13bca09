"""Everything that is wrong with the rows of a file or the pairs of a task, counted by kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from circuitlit.errors import UserError

SHOWN = 5  # places named of each kind


class Fault(NamedTuple):
    """What is wrong with one row.

    Attributes:
        number: which row.
        place: how messages call it (`pairs.jsonl:17`, `pair 3`).
        what: what is wrong with it, and what to do.
    """

    number: int
    place: str
    what: str

    @property
    def kind(self) -> str:
        """What rows with the same mistake share: the words without numbers, quotations and what is in brackets."""
        return re.sub(r"'[^']*'|\"[^\"]*\"|\[[^]]*\]|\([^)]*\)|\d+", "...", self.what).partition(";")[0]


class BadRows(UserError):
    """Rows that cannot be used.

    Attributes:
        faults: one for each of them.
        total: rows that were looked at, these included.
    """

    def __init__(self, faults: Sequence[Fault], total: int, remedy: str = "") -> None:
        """One sentence on all of them.

        Args:
            faults: one for each row.
            total: rows that were looked at.
            remedy: what else can be done; empty for nothing.
        """
        (_, place, what), *others = faults
        text = f"{len(faults)} of {total} rows cannot be used: {by_kind(faults)}" if others else f"{place}: {what}"
        super().__init__(f"{text}; {remedy}" if remedy else text)
        self.faults, self.total = tuple(faults), total

    def __reduce__(self) -> tuple[type[BadRows], tuple[Sequence[Fault], int]]:
        return BadRows, (self.faults, self.total)  # from a process of a pool


def by_kind(faults: Sequence[Fault]) -> str:
    """How many rows of each kind, the most frequent first, with one mistake in full and where more like it are."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(fault.kind, []).append(fault)
    return "; ".join(_described(alike) for alike in sorted(kinds.values(), key=len, reverse=True))


def _described(alike: list[Fault]) -> str:
    places = ", ".join(fault.place for fault in alike[:SHOWN]) + (", ..." if len(alike) > SHOWN else "")
    return f"{len(alike)} x {alike[0].what} ({places})"
