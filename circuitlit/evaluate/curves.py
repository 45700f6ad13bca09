"""Faithfulness over circuit size: MIB's sizes, its two areas, and the same areas anchored at no edge and all edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, Function, statistic
from circuitlit.evaluate.summary import Summary, summarise
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.graph.select import Select

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Curve:
    """One ranking of the edges, cut at several sizes.

    Attributes:
        sizes: nominal shares of the graph's edges that are kept, ascending.
        n_edges: edges kept, `int(size * all edges)`.
        n_edges_reachable: those of them that can matter.
        points: what each circuit does.
        cpr: area under faithfulness over the nominal sizes, from the smallest to the largest; higher is better, 1 is a
            full model throughout, random rankings get about 0.25, values above 1 exist.
        cmd: area under |1 - faithfulness| over the same; lower is better, random rankings get about 0.75.
        cpr_anchored, cmd_anchored: the same areas over the share of edges that are reachable, from no edge
            (faithfulness 0) to all edges (faithfulness 1).
        average: mean faithfulness of the points.
        ranking: "absolute" or "signed".
        select: how circuits are cut.
        n_pairs: pairs that every point is measured on.
    """

    sizes: tuple[float, ...]
    n_edges: tuple[int, ...]
    n_edges_reachable: tuple[int, ...]
    points: tuple[Summary, ...]
    cpr: Estimate
    cmd: Estimate
    cpr_anchored: Estimate
    cmd_anchored: Estimate
    average: Estimate
    ranking: str
    select: str
    n_pairs: int

    def to_dict(self) -> dict[str, object]:
        """Plain types for result.json."""
        return asdict(self)


def cpr(faithfulness: Float[Tensor, "size *rest"], x: Float[Tensor, "size"]) -> Float[Tensor, "*rest"]:
    """Area under faithfulness by trapezoids: how well circuits of all sizes perform."""
    return torch.trapezoid(faithfulness, x, dim=0)


def cmd(faithfulness: Float[Tensor, "size *rest"], x: Float[Tensor, "size"]) -> Float[Tensor, "*rest"]:
    """Area under the distance |1 - faithfulness| by trapezoids: how far circuits of all sizes are from the model."""
    return torch.trapezoid((1 - faithfulness).abs(), x, dim=0)


def anchored(faithfulness: Float[Tensor, "size *rest"]) -> Float[Tensor, "anchored *rest"]:
    """The same curve with its two known ends: 0 where no edge is kept, 1 where all are."""
    zero = torch.zeros_like(faithfulness[:1])
    return torch.cat([zero, faithfulness, zero + 1])


@checks_arguments
def size_curve(
    bed: TestBed,
    scores: EdgeScores,
    sizes: Sequence[float] = SIZES,
    select: Select = "top_k",
    pairs: int | None = None,
    seed: int = 0,
) -> Curve:
    """Cut the scores at each size and measure; `scores.ranks_by_magnitude` chooses the ranking of effects.

    Source: MIB (arXiv 2504.13151) section 3 and its evaluation code: n = int(size * edges), means over pairs first and
    then the ratio, trapezoids over the nominal sizes. The anchored areas are ours. Intervals resample pairs together
    for all sizes.
    """
    total = scores.size
    circuits = [Circuit.cut(scores, int(size * total), select=select) for size in sizes]
    outcomes = [bed.run(circuit.kept, pairs) for circuit in circuits]
    count = len(outcomes[0].kl)
    ends = [side.metric[:count] for side in (bed.full, bed.corrupted)]
    columns = torch.stack([*(outcome.metric for outcome in outcomes), *ends]).double()
    nominal = torch.tensor(sizes, dtype=torch.float64)
    actual = torch.tensor([0.0, *(circuit.n_reachable / total for circuit in circuits), 1.0], dtype=torch.float64)

    def area(of_curve: Function) -> Estimate:
        """A figure of the whole curve, from the means of every size's metric and of both ends'."""
        return statistic(
            lambda means: of_curve((means[:-2] - means[-1]) / (means[-2] - means[-1])), columns, outcomes[0].group, seed
        ).estimate()

    return Curve(
        sizes=tuple(sizes),
        n_edges=tuple(circuit.n_edges for circuit in circuits),
        n_edges_reachable=tuple(circuit.n_reachable for circuit in circuits),
        points=tuple(summarise([outcome], bed.full, bed.corrupted, seed) for outcome in outcomes),
        cpr=area(lambda f: cpr(f, nominal)),
        cmd=area(lambda f: cmd(f, nominal)),
        cpr_anchored=area(lambda f: cpr(anchored(f), actual)),
        cmd_anchored=area(lambda f: cmd(anchored(f), actual)),
        average=area(lambda f: f.mean(0)),
        ranking=scores.ranking,
        select=select,
        n_pairs=count,
    )
