"""Training for the model's errors: they get a share of the loss that does not depend on how rare they are."""

from __future__ import annotations

from functools import partial

import torch

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.objective import Objective, model_errs, weighted_for_errors

LEAST = 10  # training pairs that share the errors' weight; of fewer, each would weigh as much as many others together


@torch.no_grad()
def for_errors(bench: Workbench, objective: Objective, weight: float | None) -> Objective:
    """An objective in which the model's errors have a share of the weight.

    Args:
        bench: whose training pairs tell how often the model errs.
        objective: per-example loss.
        weight: that share, above 0 and below 1; None leaves the objective as it is.

    Raises:
        UserError: the share is out of range, or the model errs on nearly none, or on all, of the training pairs.
    """
    if weight is None:
        return objective
    if not 0 < weight < 1:
        raise UserError(f"objective.error_weight={weight} is not a share above 0 and below 1; take 0.5")
    train, errors = bench.data.train, 0
    for batch in train.batches(bench.data.eval_batch_size, order=train.by_length()):
        placed = batch.to(bench.subject.device)
        errors += int(model_errs(bench.subject.logits(placed.clean, placed.positions), placed).sum())
    if not LEAST <= errors < len(train):
        raise UserError(
            f"objective.error_weight={weight:g}: the model errs on {errors} of {len(train)} training pairs, at least "
            f"{LEAST} and not all are needed; raise task.build.n_train or take task=ioi_hard"
        )
    return partial(weighted_for_errors, objective=objective, weight=weight, rate=errors / len(train))
