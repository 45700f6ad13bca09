"""What ablation, scaling and transfer of nodes all work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from circuitlit.compare.writes import Writers
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import TestBed
from circuitlit.evaluate.matched import matched_nodes
from circuitlit.evaluate.testing import enough_draws
from circuitlit.graph import Circuit
from circuitlit.model import Subject

CLAIMS = 4  # of the chosen set: ablation, doses, its writes and its weights transferred


@dataclass(frozen=True)
class Case:
    """What all interventions work with."""

    bench: Workbench
    bed: TestBed
    circuit: Circuit
    chosen: list[str]
    kinds: Mapping[str, str]
    text: Int[Tensor, "passage pos"]
    writers: Writers
    others: dict[str, TestBed]
    control_pairs: int
    draws: int | None
    seed: int

    @property
    def subject(self) -> Subject:
        """The model."""
        return self.bench.subject

    def sets(self) -> list[list[str]]:
        """Random sets like the chosen one, as many as the page's claims need."""
        return matched_nodes(self.subject.graph, self.chosen, self.draws or enough_draws(CLAIMS), self.seed)
