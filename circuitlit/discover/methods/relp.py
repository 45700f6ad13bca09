"""Relevance patching: EAP with coefficients of layer-wise relevance propagation in place of gradients."""

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
from circuitlit.model.relevance import relevance_rules
from circuitlit.tasks.pair import Batch


@declares(Traits(mean_of_pairs=True, gives_pairs=True))
def relp(
    loss: MaskedLoss,
    references: References,
    batches: Iterable[Batch],
    constant_patterns: bool = False,
    each: Each | None = None,
) -> EdgeScores:
    """Ablated minus clean output of the writer times the relevance coefficient at the reader; as cheap as EAP.

    The coefficients are gradients of the clean run under the rules of `relevance_rules`, among them the reader's own
    norm and a norm behind the attention (Gemma). In a model without biases and learned positions, with constant
    patterns, relevance is conserved: under zero ablation the scores of the edges out of `input` add up to minus a loss
    that is linear in the logits.

    Args:
        loss: the objective; its gradient at the clean run must not vanish.
        references: teacher and ablated writers.
        batches: training pairs, each seen once.
        constant_patterns: True takes attention patterns as constants, as LRP has it; all edges into queries and keys
            then score 0. False, as in the authors' published example, leaves the attention's gradient alone.
        each: is given every batch's pairs and their own scores, for resamples of the pairs.

    Returns:
        Scores in the loss's unit, mean over examples; ranked by magnitude.

    Raises:
        UserError: the objective is least at the clean run, or a norm is not known to the rules.

    Source: Jafari et al., "RelP" (arXiv 2508.21258) section 3; there for nodes, here for edges.
    """
    refuse_flat_objective(loss, "relp")

    def of_batch(batch: Batch, reference: Reference) -> Float[Tensor, "*pair copies edge"]:
        with relevance_rules(loss.model.subject, constant_patterns):
            clean = trace(loss, batch, reference.teacher)
        moves = ablation_moves(clean.writers, reference.ablated)
        return contract(loss, clean.gradients, moves, batch, each is not None)

    return mean_scores(loss, references, batches, of_batch, "relp", each, constant_patterns=constant_patterns)
