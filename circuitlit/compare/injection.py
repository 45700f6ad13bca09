"""Gradients by node: which nodes carry what was tuned in, and which ones tuning is going to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.compare.effects import plain_logits
from circuitlit.finetune import answer_log_probs
from circuitlit.model import Subject
from circuitlit.model.slices import plain_copy, slices
from circuitlit.objective import task_metric
from circuitlit.tasks import Batch

PairFigure = Callable[[Subject, Batch], Float[Tensor, "pair"]]


def weight_gradients(subject: Subject, batches: Sequence[Batch], figure: PairFigure) -> tuple[Subject, Subject]:
    """A copy of a subject with adapters merged, and one that holds the gradient of a figure's mean in its weights."""
    plain, gradient = plain_copy(subject), plain_copy(subject)
    plain.model.requires_grad_(True)
    count = sum(map(len, batches))
    for batch in batches:
        (figure(plain, batch.to(plain.device)).sum() / count).backward()
    with torch.no_grad():
        for target, source in zip(gradient.model.parameters(), plain.model.parameters(), strict=True):
            target.copy_(torch.zeros_like(target) if source.grad is None else source.grad)
            source.grad = None
    plain.model.requires_grad_(False)
    return plain, gradient


def reverting_scores(base: Subject, tuned: Subject, batches: Sequence[Batch]) -> dict[str, float]:
    """What the tuned model's metric loses if a node's weights go back to the base's, to first order, for every node.

    The sum over a node's weights of gradient x (tuned - base): one forward and backward for all nodes. Keys and values
    that a group of heads shares belong to no single head and are left out, as reverting one head leaves them.

    Args:
        base, tuned: two models of one graph; adapters are merged into copies.
        batches: pairs with a metric.

    Source: attribution patching (arXiv 2310.10348), with weights instead of activations.
    """
    before = plain_copy(base)
    after, gradient = weight_gradients(tuned, batches, lambda s, batch: task_metric(plain_logits(s, batch), batch))
    found = {}
    for node in base.graph.nodes:
        parts = zip(slices(before, [node]), slices(after, [node]), slices(gradient, [node]), strict=True)
        found[node] = sum(float(((new - old) * slope).double().sum()) for old, new, slope in parts)
    return found


def expected_changes(base: Subject, batches: Sequence[Batch]) -> dict[str, float]:
    """Where supervised tuning is going to move the weights: each node's gradient norm over its weight norm.

    Args:
        base: the model before tuning.
        batches: training pairs of the task to tune on; the loss is that of `SupervisedTuner` for answers of one token.
    """
    plain, gradient = weight_gradients(base, batches, lambda s, batch: -answer_log_probs(s.model, batch).sum(-1))
    found = {}
    for node in base.graph.nodes:
        slope, size = (
            sum(float(part.double().square().sum()) for part in slices(s, [node])) ** 0.5 for s in (gradient, plain)
        )
        found[node] = slope / size if size else 0.0
    return found
