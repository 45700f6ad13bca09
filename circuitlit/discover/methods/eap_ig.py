"""Edge attribution patching with gradients integrated over the input, from ablated to clean embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.discover.reader_gradients import Each, ablation_moves, contract, mean_scores, trace
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.masked import Reference, References, run_writers
from circuitlit.tasks.pair import Batch

SHIFTS = {"left": 0.0, "midpoint": 0.5, "right": 1.0}


@declares(Traits(mean_of_pairs=True, gives_pairs=True))
def eap_ig(
    loss: MaskedLoss,
    references: References,
    batches: Iterable[Batch],
    steps: int = 5,
    rule: str = "midpoint",
    each: Each | None = None,
) -> EdgeScores:
    """EAP with the mean of the gradients along a straight path of input embeddings.

    As the steps grow, the scores of the edges out of `input` add up to `loss(ablated input) - loss(clean)`, the rest of
    the model running as it does; with interchange ablation that is the corrupted run's loss.

    Args:
        loss: the objective; KL works, since its gradient is not zero along the path.
        references: teacher and ablated writers.
        batches: training pairs, each seen once.
        steps: points on the path, each a stock forward and backward.
        rule: the shares of the clean embedding. "left" takes k/steps for k = 0..steps-1 (the ablated end, not the clean
            one), "right" k = 1..steps (the clean end, not the ablated one), "midpoint" k + 1/2, whose error falls with
            the square of the steps.
        each: is given every batch's pairs and their own scores, for resamples of the pairs.

    Returns:
        Scores in the loss's unit, mean over examples; ranked by magnitude.

    Raises:
        UserError: a setting out of its range.

    Source: Hanna et al., "Have Faith in Faithfulness" (arXiv 2403.17806) section 3, which is "right"; the authors' code
    for edges has been "left" since February 2025.
    """
    points = path_points(steps, rule)

    def of_batch(batch: Batch, reference: Reference) -> Float[Tensor, "*pair copies edge"]:
        return path_scores(loss, batch, reference, points, each is not None)

    return mean_scores(loss, references, batches, of_batch, "eap_ig", each, steps=steps, rule=rule)


def path_points(steps: int, rule: str) -> list[float]:
    """Shares of the clean end at which a rule of integration looks.

    Raises:
        UserError: no steps, or no such rule.
    """
    if steps < 1:
        raise UserError(f"method.score.steps={steps} is not at least 1")
    if rule not in SHIFTS:
        raise UserError(f"method.score.rule={rule} is not one of {', '.join(SHIFTS)}")
    return [(k + SHIFTS[rule]) / steps for k in range(steps)]


def path_scores(
    loss: MaskedLoss, batch: Batch, reference: Reference, points: Sequence[float], by_pair: bool = False
) -> Float[Tensor, "*pair copies edge"]:
    """Summed scores of a batch, or of each pair, by the mean gradient over points between ablated (0) and clean (1)."""
    clean = run_writers(loss.model.subject, batch.clean)
    moves = ablation_moves(clean, reference.ablated)
    mean: Tensor | None = None
    for point in points:
        gradients = trace(loss, batch, reference.teacher, clean.embed + (1 - point) * moves.embed).gradients
        mean = gradients if mean is None else mean.add_(gradients)
    assert mean is not None
    return contract(loss, mean.div_(len(points)), moves, batch, by_pair)
