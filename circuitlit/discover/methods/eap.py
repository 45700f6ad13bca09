"""Edge attribution patching: the first-order effect of ablating each edge, for all edges at once."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.discover.reader_gradients import (
    Each,
    ablation_moves,
    contract,
    mean_scores,
    refuse_flat_objective,
    trace,
)
from circuitlit.graph import EdgeScores
from circuitlit.masked import Reference, References
from circuitlit.tasks.pair import Batch


@declares(Traits(mean_of_pairs=True, gives_pairs=True))
def eap(loss: MaskedLoss, references: References, batches: Iterable[Batch], each: Each | None = None) -> EdgeScores:
    """Ablated minus clean output of the writer times the clean run's gradient at the reader.

    One stock forward and backward a batch, next to the forwards of the references. The scores equal minus the mask
    gradient of the loss with all masks at 1.

    Args:
        loss: the objective; its gradient at the clean run must not vanish.
        references: teacher and ablated writers.
        batches: training pairs, each seen once.
        each: is given every batch's pairs and their own scores, for resamples of the pairs.

    Returns:
        The estimated increase of the loss as each edge alone is ablated, in the loss's unit, mean over examples; ranked
        by magnitude.

    Raises:
        UserError: the objective is least at the clean run.

    Source: Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery" (arXiv 2310.10348) section 2;
    readers see the residual stream ahead of their norm. The sign is that of a loss, theirs of a metric.
    """
    refuse_flat_objective(loss, "eap")

    def of_batch(batch: Batch, reference: Reference) -> Float[Tensor, "*pair copies edge"]:
        clean = trace(loss, batch, reference.teacher)
        moves = ablation_moves(clean.writers, reference.ablated)
        return contract(loss, clean.gradients, moves, batch, each is not None)

    return mean_scores(loss, references, batches, of_batch, "eap", each)
