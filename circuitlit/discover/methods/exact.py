"""Exact edge patching: every edge cut alone, and the loss measured."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from circuitlit.discover.held_loss import HeldLoss
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.masked import References
from circuitlit.progress import told
from circuitlit.tasks.pair import Batch


@declares(Traits(mean_of_pairs=True))
def exact(loss: MaskedLoss, references: References, batches: Iterable[Batch], *, chunk: int = 16) -> EdgeScores:
    """`loss(all edges but this one) - loss(all edges)` for every edge: what the gradient methods estimate.

    Edges into one reader share everything upstream of it, so they are tried `chunk` at a time as rows of one batch, and
    only what follows from the reader is computed.

    Args:
        loss: the objective under masks.
        references: teacher and ablated writers.
        batches: the pairs; the loss is their mean.
        chunk: edges tried at once; more is faster on a GPU and takes more memory.

    Returns:
        Scores in the loss's unit. With KL none is negative; with a metric those of edges that hold it down are.

    Raises:
        UserError: no edge is to be tried at once.

    Source: activation patching of single edges, as "EActP" in MIB (Mueller et al., arXiv 2504.13151).
    """
    if chunk < 1:
        raise UserError(f"method.score.chunk={chunk} is not at least 1")
    held, graph = HeldLoss(loss, references, batches), loss.layout.graph
    full = held.value()
    values = torch.zeros(graph.n_edges, dtype=torch.float64)
    for reader in told(range(graph.n_readers), "readers looked at", graph.n_readers):
        first, count = int(graph.offsets[reader]), int(graph.visible[reader])
        for start in range(0, count, chunk):
            writers = torch.arange(start, min(start + chunk, count))
            rows = held.masks[reader].repeat(len(writers), 1)
            rows[torch.arange(len(writers)), writers] = 0
            values[first + writers] = torch.tensor(held.values(reader, rows), dtype=torch.float64) - full
    details: dict[str, object] = {"objective_full": full}
    return EdgeScores(graph, values.float()[None], "exact", (), True, details, unit=loss.unit)
