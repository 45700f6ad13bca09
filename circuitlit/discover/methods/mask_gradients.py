"""Attribution by gradients of the masks, integrated from no edge to all edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.masked import References
from circuitlit.tasks.pair import Batch


@declares(Traits(mean_of_pairs=True, numbers_batches=True, gathers=True, gives_batches=True))
def mask_gradients(
    loss: MaskedLoss,
    references: References,
    batches: Iterable[Batch],
    steps: int = 5,
    draws: int = 0,
    numbers: Iterable[int] | None = None,
    absent: Bool[Tensor, "mask"] | None = None,
    each_batch: Callable[[Tensor, int], None] | None = None,
) -> EdgeScores:
    """Mean of minus the loss's gradient along the path on which all masks grow from 0 to 1 together.

    By the fundamental theorem the scores add up to `loss(no edge) - loss(all edges)`. The gradient at all-ones is minus
    EAP for a metric, and exactly 0 for KL, which is why the path is integrated.

    Args:
        loss: the objective under masks.
        references: teacher and ablated writers.
        batches: training pairs, each seen once.
        steps: points of the midpoint rule.
        draws: 0 visits every point with every batch; otherwise each batch visits this many of the points, in turn, so
            that all points are visited equally often: a cheaper unbiased estimate.
        numbers: each batch's place among all, where these are one process's share of them.
        absent: edges that stay cut all along the path, so that the others' scores are those in a model without them.
            None cuts none.
        each_batch: is given every batch's own scores, added up over its pairs and visits, and how many these are.

    Returns:
        Scores in the loss's unit; ranked by magnitude.

    Raises:
        UserError: a setting out of its range, or masks on nodes.

    Source: EAP-IG (Hanna et al., arXiv 2403.17806) integrates over inputs; auto-circuit's "integrated edge gradients"
    over the masks, as here, at left or right ends instead of midpoints.
    """
    if steps < 1 or not 0 <= draws <= steps:
        raise UserError(
            f"method.score.steps={steps} must be at least 1 and method.score.draws={draws} from 0 to as many"
        )
    layout = loss.layout
    if layout.sites != "edges":
        raise UserError("edges are scored by masks of their own; set mask.sites=edges for this method")
    device = references.subject.device
    total = torch.zeros(layout.size, device=device)
    present = torch.ones_like(total) if absent is None else (~absent).to(total)
    weights = torch.zeros(steps)
    for number, batch in zip(count() if numbers is None else numbers, batches, strict=False):
        batch = batch.to(device)
        reference, before = references(batch), None if each_batch is None else total.clone()
        for visit in range(draws or steps):
            point = (number + visit * steps // (draws or steps)) % steps
            masks = ((point + 0.5) / steps * present).requires_grad_()
            (grad,) = torch.autograd.grad(loss(masks, batch, reference), masks)
            total -= grad.float() * len(batch)
            weights[point] += len(batch)
        if each_batch is not None and before is not None:
            each_batch((total - before).view(layout.copies, -1).cpu(), len(batch) * (draws or steps))
    values = (total / weights.sum()).view(layout.copies, -1).cpu()
    details: dict[str, object] = {"steps": steps, "draws": draws}
    return EdgeScores(layout.graph, values, "mask_gradients", layout.roles, True, details, unit=loss.unit)
