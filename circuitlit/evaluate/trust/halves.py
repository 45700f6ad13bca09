"""What circuits from complementary halves of the pairs say together: inclusion frequencies, core, consensus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.similarity import corrected_overlap
from circuitlit.evaluate.statistics import average_ranks, mean_estimate, mean_of, paired_difference
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.stability import Halves, core_bound
from circuitlit.graph import Circuit
from circuitlit.graph.select import top_k


def halves_of(
    circuit: Circuit,
    made: Sequence[Made],
    beside: Sequence[Made],
    bed: TestBed | None,
    share: float,
    **facts: Any,
) -> Halves:
    """What circuits from halves say together.

    Args:
        circuit: the given one.
        made: two of each split, one after the other; those without KLs are not averaged over.
        beside: another attribution's, of the same halves; may be empty.
        bed: test pairs; None measures no KL.
        share: of the circuits that an edge of the core is in.
        facts: further fields of `Halves`.
    """
    total, count = circuit.kept.numel(), len(made)
    counts, order = torch.zeros(total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
    for one in made:
        counts[one.edges] += 1
        order[one.edges] += torch.tensor(one.order, dtype=torch.float64)
    pi = counts / count
    core = pi >= share - 1e-9
    ever = counts.nonzero()[:, 0]
    alike, others = likeness(made, total), likeness(beside, total)
    size = circuit.n_edges
    return Halves(
        **facts,
        n_circuits=count,
        edges=ever.tolist(),
        pi=pi[ever].tolist(),
        core=int(core.sum()),
        bound=core_bound(size, total, share),
        squares=float((pi**2).sum()),
        shared=float((counts * (counts - 1)).sum()) / (count * (count - 1)),
        kept=float(pi[circuit.kept.flatten()].sum()) / size,
        alike=mean_of(alike),
        baseline=mean_of(others) if others else None,
        beyond=mean_of([one - other for one, other in zip(alike, others, strict=True)]) if others else None,
        **(_losses(bed, made, core, consensus(counts, order, size), circuit.kept.shape) if bed else {}),
    )


def consensus(counts: Tensor, order: Tensor, size: int) -> Bool[Tensor, "edge"]:
    """The `size` edges that most circuits keep, of equally frequent ones those that these rank higher.

    Args:
        counts: circuits that keep each edge.
        order: sum of what these rank it by.
        size: edges.
    """
    within = average_ranks(order) / (len(order) + 1)  # below 1, so that it decides between equal counts alone
    return top_k(counts + within * (counts > 0), size)


def likeness(made: Sequence[Made], total: int) -> list[float]:
    """J* of every two circuits that follow each other."""
    return [alike(one, two, total) for one, two in zip(made[::2], made[1::2], strict=True)]


def alike(one: Made, two: Made, total: int) -> float:
    """J* of two circuits out of `total` edges: 0 chance, 1 the same."""
    return corrected_overlap(len(set(one.edges) & set(two.edges)), len(one.edges), len(two.edges), total)


def _losses(
    bed: TestBed, made: Sequence[Made], core: Bool[Tensor, "edge"], common: Bool[Tensor, "edge"], shape: torch.Size
) -> dict[str, Any]:
    members = torch.tensor([one.kl for one in made if one.kl], dtype=torch.float64)
    of_core, of_common = (bed.run(edges.view(shape)).kl for edges in (core, common))
    group = bed.full.group
    return {
        "members_kl": mean_estimate(members, group),
        "core_kl": mean_estimate(of_core, group),
        "consensus_kl": mean_estimate(of_common, group),
        "consensus_minus_members": paired_difference(of_common, members.mean(0), group),
    }
