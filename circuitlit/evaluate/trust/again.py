"""Circuits that are found anew by one procedure, from any of the training pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.procedure import Procedure
from circuitlit.store import Store
from circuitlit.tasks import EncodedPairs

LEAST_UNITS = 4  # pairs or sentences that can be halved in more than one way
Rows = list[int]


@dataclass(frozen=True)
class Again:
    """Finds circuits anew, each once, and keeps them.

    Attributes:
        bench: of the circuit's size, with all training pairs.
        procedure: how a circuit is found.
        bed: test pairs; None measures no KL.
        store: of the circuits.
        known: what they all depend on.
        seed: of the procedure and of the splits.
    """

    bench: Workbench
    procedure: Procedure
    bed: TestBed | None
    store: Store
    known: dict[str, Any]
    seed: int

    def made(self, name: str, bench: Workbench, seed: int | None = None, start: str = "method", **facts: Any) -> Made:
        """A circuit from the training pairs of a workbench, read where it is there."""
        own = self.seed if seed is None else seed
        known = self.known | {"seed": own, "start": start} | facts
        return self.store.made(
            name, known, Made, lambda: Made.of(self.bench, self.procedure(bench, own, start), self.bed)
        )

    def on(self, name: str, rows: Rows, measured: bool = True) -> Made:
        """A circuit from some training pairs, repeats included; not kept where a method scores pair by pair.

        Args:
            name: of the file that keeps it.
            rows: numbers of the pairs.
            measured: False leaves out the KLs of a circuit that costs nothing else.
        """
        if self.resampler is not None:
            return Made.of(self.bench, self.resampler(rows), self.bed if measured else None)
        return self.made(name, self.bench.on(rows), rows=rows)

    @property
    def whole(self) -> Made:
        """The circuit of all training pairs."""
        if self.resampler is not None:
            return Made.of(self.bench, self.resampler.scores)
        return self.made(f"seed_{self.seed}", self.bench)

    @cached_property
    def resampler(self) -> Resampler | None:
        """Scores of any pairs for one pass, where the procedure is an attribution that has them."""
        found = Resampler(self.bench, self.procedure.method)
        return found if self.procedure.schedule is None and found.by_pair else None


def units_of(pairs: EncodedPairs) -> list[Rows]:
    """The pairs of each sentence; each pair alone where none share one."""
    groups = pairs.groups or range(len(pairs))
    return [[row for row in range(len(pairs)) if groups[row] == one] for one in dict.fromkeys(groups)]


def too_few(units: int, of: str) -> str:
    """Why so few pairs or sentences are not halved."""
    return f"{units} {of} of the training split are too few to halve, {LEAST_UNITS} are needed"


def splits_of(units: Sequence[Rows], count: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Ways to share units out into two halves, different ones as far as there are any.

    Args:
        units: the rows of each.
        count: ways, at most.
        seed: of the draws.
    """
    draw, seen, found = random.Random(seed), set(), []
    for _ in range(20 * count):
        order = draw.sample(range(len(units)), len(units))
        one, two = (frozenset(part) for part in (order[: len(units) // 2], order[len(units) // 2 :]))
        if one in seen or two in seen:
            continue
        seen.add(one)
        found.append(tuple(sorted(row for unit in part for row in units[unit]) for part in (one, two)))
        if len(found) == count:
            break
    return found
