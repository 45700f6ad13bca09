"""Random scores: the least that a method must beat."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.graph import EdgeScores
from circuitlit.masked import References
from circuitlit.tasks.pair import Batch


@declares(Traits(gathers=True))
def random_scores(loss: MaskedLoss, references: References, batches: Iterable[Batch], seed: int = 0) -> EdgeScores:
    """Uniform numbers in [0, 1), the same for the same seed and graph on any machine.

    Args:
        loss: the layout of the scores.
        references, batches: not looked at; there so that every method is called alike.
        seed: of the numbers.
    """
    layout = loss.layout
    values = torch.rand(layout.copies, layout.graph.n_edges, generator=torch.Generator().manual_seed(seed))
    details: dict[str, object] = {"seed": seed}
    return EdgeScores(
        layout.graph, values, "random_scores", layout.roles, details=details, kind="share", unit="random number"
    )
