"""A circuit that was found anew, as plain types."""

from __future__ import annotations

from dataclasses import dataclass

from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.measure import TestBed
from circuitlit.graph import EdgeScores


@dataclass(frozen=True, kw_only=True)
class Made:
    """A circuit that was found anew.

    Attributes:
        edges: numbers of its edges, counted over all token roles.
        order: what they are ranked by, the more the better.
        kl: KL(model || it) on each test pair, nats; empty where it was not run.
    """

    edges: list[int]
    order: list[float]
    kl: list[float]

    @classmethod
    def of(cls, bench: Workbench, scores: EdgeScores, bed: TestBed | None = None) -> Made:
        """The circuit of some scores, of a workbench's size; with its KLs on the pairs of `bed`."""
        kept = bench.best(scores)
        kl = [] if bed is None else bed.run(kept).kl.tolist()
        edges, order = kept.flatten(), scores.order.flatten()
        return cls(edges=edges.nonzero()[:, 0].tolist(), order=order[edges].tolist(), kl=kl)
