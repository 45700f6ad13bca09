"""Edge attribution patching with the gradients of both ends: the clean run and the run on ablated embeddings."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.discover.methods.eap_ig import path_scores
from circuitlit.discover.reader_gradients import Each, mean_scores
from circuitlit.graph import EdgeScores
from circuitlit.masked import Reference, References
from circuitlit.tasks.pair import Batch


@declares(Traits(mean_of_pairs=True, gives_pairs=True))
def clean_corrupted(
    loss: MaskedLoss, references: References, batches: Iterable[Batch], each: Each | None = None
) -> EdgeScores:
    """EAP with half the sum of the clean and the corrupted run's gradient: the trapezoid rule of EAP-IG in one step.

    With zero and mean ablation, which are no runs on a prompt, the corrupted end is the run on the ablated embeddings,
    as for EAP-IG.

    Args:
        loss: the objective; for KL only the corrupted end counts.
        references: teacher and ablated writers.
        batches: training pairs, each seen once.
        each: is given every batch's pairs and their own scores, for resamples of the pairs.

    Returns:
        Scores in the loss's unit, mean over examples; ranked by magnitude.

    Source: the "clean-corrupted" method of the code of Hanna et al. (arXiv 2403.17806).
    """

    def of_batch(batch: Batch, reference: Reference) -> Float[Tensor, "*pair copies edge"]:
        return path_scores(loss, batch, reference, (0.0, 1.0), each is not None)

    return mean_scores(loss, references, batches, of_batch, "clean_corrupted", each)
