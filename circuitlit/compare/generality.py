"""Circuits of several tasks against each other, and where tuning and a task's circuit collide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.graph import Circuit, top_k

Matrix = Sequence[Sequence[float | None]]


def generality(faithfulness: Matrix) -> float | None:
    """Mean faithfulness on the other tasks over that on the own: 1 is as good elsewhere, 0 of no use there.

    Args:
        faithfulness: circuit i on task j; None where there is too little to explain.

    Returns:
        None also where the circuits are of no use on their own tasks: a share of nothing, or of less, says nothing.
    """
    size = len(faithfulness)
    own = _mean([faithfulness[i][i] for i in range(size)])
    other = _mean([faithfulness[i][j] for i in range(size) for j in range(size) if i != j])
    return None if own is None or other is None or own <= 0 else other / own


def ablation_specificity(lost: Matrix) -> float | None:
    """Mean of D_ii - D_ji over i and j: how much more a task loses with its own circuit than with another's.

    Args:
        lost: share of task j's effect that is lost without circuit i.
    """
    size = len(lost)
    gaps = []
    for i in range(size):
        for j in range(size):
            own, other = lost[i][i], lost[j][i]
            if i != j and own is not None and other is not None:
                gaps.append(own - other)
    return _mean(gaps)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def composites(one: Circuit, other: Circuit, count: int) -> dict[str, Bool[Tensor, "copies edge"]]:
    """Union and intersection of two tasks' circuits, cut or filled to `count` edges: the size they are compared at.

    Both hold edges of the two circuits alone. The union has those with the largest share of either circuit's weight.
    The intersection has the edges of both first, the largest smaller share ahead, and is filled up as the union is.
    Composites of a circuit with itself are the circuit.
    """
    ours, theirs = one.kept.any(0), other.kept.any(0)
    either, shares = ours | theirs, torch.stack([one.shares, other.shares])
    larger = shares.amax(0).masked_fill(~either, -1)
    shared_first = torch.where(ours & theirs, 2 + shares.amin(0), larger)
    count = min(count, int(either.sum()))
    return {"union": top_k(larger, count)[None], "intersection": top_k(shared_first, count)[None]}


def conflict_index(importance: Mapping[str, float], change: Mapping[str, float]) -> float:
    """Overlap of where a task's circuit sits with where tuning moved the weights, in [0, 1].

    Both are made shares of their sum over the nodes; the index is the sum of the smaller of the two, node by node: 1
    where tuning changed each node as much as the task needs it, 0 where it changed only nodes that the task does not.
    """
    return float(torch.minimum(*_shares(importance, change)).sum())


def conflicting(importance: Mapping[str, float], change: Mapping[str, float], count: int) -> list[str]:
    """The nodes that add most to the conflict index, most first; those that add nothing are left out."""
    nodes = list(importance)
    shared = torch.minimum(*_shares(importance, change))
    order = shared.argsort(descending=True, stable=True)[:count].tolist()
    return [nodes[place] for place in order if float(shared[place]) > 0]


def _shares(
    importance: Mapping[str, float], change: Mapping[str, float]
) -> tuple[Float[Tensor, "node"], Float[Tensor, "node"]]:
    parts = []
    for values in (importance, change):
        size = torch.tensor([abs(values.get(node, 0.0)) for node in importance], dtype=torch.float64)
        parts.append(size / size.sum() if float(size.sum()) else size)
    return parts[0], parts[1]


def shuffled_conflict(
    importance: Mapping[str, float], change: Mapping[str, float], draws: int, seed: int = 0
) -> list[float]:
    """Conflict indices with the changes shuffled among heads and among MLPs: what chance gives."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [[node for node in importance if node[0] == kind] for kind in "am"]
    found = []
    for _ in range(draws):
        mixed: dict[str, float] = {}
        for members in kinds:
            order = torch.randperm(len(members), generator=generator).tolist()
            mixed |= {node: change.get(members[place], 0.0) for node, place in zip(members, order, strict=True)}
        found.append(conflict_index(importance, mixed))
    return found
