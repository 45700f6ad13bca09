"""How stable an attribution is, at no cost: halves of the batches that it scored anyway."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import LARGEST, Workbench
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust.halves import halves_of
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.evaluate.trust.rows import core_row
from circuitlit.graph import EdgeScores

SPLITS = 25
SHARE = 0.9  # of the circuits that an edge of the core is in
LEAST = 4  # batches that can be halved in more than one way


@dataclass
class BatchScores:
    """Keeps what an attribution says of every batch.

    Attributes:
        method: the attribution; one that says nothing of batches, or too much to keep, is left as it is.
        scores, weights: of each batch, added up, and of how many pairs and visits.
    """

    method: Method
    scores: list[Float[Tensor, "copies edge"]] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, bench: Workbench, method: Method) -> Self:
        """For scoring the training pairs of a workbench."""
        made, batches = cls(method), len(bench.batch_rows(method))
        if method.traits.gives_batches and 4 * batches * bench.layout.n_edges <= LARGEST:
            made.method = replace(method, score=partial(method.score, each_batch=made.keep))
        return made

    def keep(self, scores: Float[Tensor, "copies edge"], weight: int) -> None:
        """Keep a batch's scores."""
        self.scores.append(scores)
        self.weights.append(weight)

    def rows(self, bench: Workbench, whole: EdgeScores, seed: int) -> list[TrustRow]:
        """The core of circuits of halves of the batches, and how alike the circuits of two halves are.

        Batches whose gradients are taken at the same point of the path are shared out evenly.

        Args:
            bench: whose size the circuits have.
            whole: of all batches.
            seed: of the halves.
        """
        if len(self.scores) < LEAST:
            return []
        draw, made = random.Random(seed), []
        points = int(str(whole.details.get("steps", 1)))
        for _ in range(SPLITS):
            order = draw.sample(range(len(self.scores)), len(self.scores))
            order.sort(key=lambda number: number % points)
            for half in (order[::2], order[1::2]):
                weight = sum(self.weights[number] for number in half)
                values = torch.stack([self.scores[number] for number in half]).sum(0) / weight
                made.append(Made.of(bench, replace(whole, values=values)))
        found = halves_of(bench.cut(whole), made, [], None, SHARE, of="batches", n_splits=SPLITS)
        said = f"J* of {whole.method} circuits of two halves of its {len(self.scores)} batches"
        return [
            core_row("stable.attribution_core", found, bench.count, SHARE, whole.method),
            TrustRow.of("stable.attribution", said, found.alike or Estimate(), draws=found.n_circuits),
        ]
