"""Optimal ablation: for every writer the constant that hurts least when it stands in for the writer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.gates import mixed
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import Ablated, MaskedModel, References
from circuitlit.masked.ablation import spread
from circuitlit.objective import Objective, each_pair
from circuitlit.tasks.pair import Batch


def optimal_writers(
    model: MaskedModel,
    references: References,
    objective: Objective,
    batches: Iterable[Batch],
    steps: int = 100,
    lr: float = 0.01,
    seed: int = 0,
) -> Ablated:
    """One constant vector a writer, trained to make circuits as good as they can be.

    Starts at the given means. Every step draws a share of edges to keep, uniform in [0, 1], and that share of edges at
    random, and moves the constants down the objective's gradient.

    Args:
        model: the masked forward.
        references: of mean ablation: gives the teacher and the start.
        objective: per-example loss; less is better.
        batches: training pairs; visited in turn.
        steps: of Adam.
        lr: in units of each constant's own root mean square over the vector's entries, so that layers of different
            scale move alike.
        seed: of the draws.

    Returns:
        Constants for `References(subject, "optimal", constants)`.

    Source: Li and Janson, "Optimal ablation for interpretability" (arXiv 2409.09951) section 2.2, who train the
    constants for one ablated set; circuits of all sizes are asked of ours, so the set is drawn.
    """
    start = references.mean
    if start is None:
        raise ValueError("optimal ablation starts from the writers' means: References(subject, 'mean', mean)")
    graph, device = model.graph, references.subject.device
    scales = [_scale(part) for part in vars(start).values()]
    moves = [torch.zeros_like(part, dtype=torch.float32).requires_grad_() for part in vars(start).values()]
    optimizer = torch.optim.Adam(moves, lr=lr)
    for step, batch in enumerate(itertools.islice(itertools.cycle(list(batches)), steps)):
        batch = batch.to(device)
        generator = torch.Generator().manual_seed(mixed(seed, step))
        keep = torch.rand((), generator=generator)
        masks = (torch.rand(1, graph.n_edges, generator=generator) < keep).float().to(device)
        constants = _moved(start, moves, scales)
        logits = model(scatter_edges(graph, masks), batch.clean, spread(constants, batch), batch.positions, batch.roles)
        loss = each_pair(objective, logits, references.teacher(batch), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Ablated(*(part.detach() for part in vars(_moved(start, moves, scales)).values()))


def _scale(part: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows one"]:
    """Root mean square of each constant; 1 where it is zero."""
    size = part.float().pow(2).mean(-1, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def _moved(start: Ablated, moves: list[Tensor], scales: list[Tensor]) -> Ablated:
    parts = zip(vars(start).values(), moves, scales, strict=True)
    return Ablated(*(part + (move * scale).to(part.dtype) for part, move, scale in parts))
