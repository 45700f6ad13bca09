"""Circuits that are found anew by one procedure, from any of the training pairs."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.procedure import Procedure
from circuitlit.progress import told
from circuitlit.store import Part, Store
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

    def part(
        self,
        name: str,
        bench: Callable[[], Workbench] | None = None,
        seed: int | None = None,
        start: str = "method",
        **facts: Any,
    ) -> Part[Made]:
        """A circuit that is found by training or by a pass of its own, and kept.

        Args:
            name: of the file that keeps it.
            bench: with the training pairs; None takes all.
            seed: of the procedure; None takes the usual one.
            start: of masks, as the procedure takes it.
            facts: what else it depends on.
        """
        own = self.seed if seed is None else seed
        known = self.known | {"seed": own, "start": start} | facts

        def work() -> Made:
            return Made.of(self.bench, self.procedure(bench() if bench else self.bench, own, start), self.bed)

        return Part(name, known, Made, work)

    def made(
        self, asked: Mapping[str, Rows], measured: Container[str], also: Iterable[Part[Made]] = ()
    ) -> dict[str, Made]:
        """Circuits by their names, read where they are there.

        Args:
            asked: training pairs of circuits, repeats included; these are not kept where a method scores pair by pair.
            measured: which of them have KLs even where a circuit costs nothing else.
            also: more circuits.
        """
        pairs, parts, text = self.resampler, list(also), "circuits found again"
        if pairs is None:
            parts = [self.part(name, partial(self.bench.on, rows), rows=rows) for name, rows in asked.items()] + parts
        made = self.store.all_made(told(parts, text, len(parts)))
        if pairs is not None and asked:
            _ = pairs.scores  # the one long pass, which would spoil the estimate of what is left
            for name, rows in told(asked.items(), text, len(asked)):
                made[name] = Made.of(self.bench, pairs(rows), self.bed if name in measured else None)
        return made

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
