"""What a circuit's rivals say of it: which edges are held longest, the core, redundancy, the cross table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, mean_estimate, statistic
from circuitlit.evaluate.trust.rival_search import RivalSearch
from circuitlit.evaluate.trust.rivals import ACCEPTED, Redundancy, RivalCircuit, Rivals
from circuitlit.tasks import PairsModule

NAMED = 50  # edges that are named


def rivals_of(
    search: RivalSearch, free: RivalCircuit, rivals: Sequence[RivalCircuit], others: Mapping[str, PairsModule]
) -> Rivals:
    """The result of a search.

    Args:
        search: the circuit and its pairs.
        free: found without a constraint.
        rivals: most common edges first.
        others: pairs of more tasks, for the cross table.
    """
    bench, bed, first = search.bench, search.testing, search.inside
    agreed = [one for one in (*rivals, free) if one.state == ACCEPTED and one.n_common < bench.count]
    least = min(agreed or rivals, key=lambda one: one.n_common)
    hold, graph = _hold(first, rivals), bench.layout.graph
    edges = first.nonzero()[:, 0]
    hardest = sorted(zip(hold[edges].tolist(), edges.tolist(), strict=True))[:NAMED]
    core = first.clone()
    for one in agreed:
        core &= _kept(one, first)
    beds = {bench.data.splits.name: bed}
    beds |= {name: TestBed.of(bench, data.test, data.test.spread()) for name, data in others.items()}
    return Rivals(
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=search.first.scores.method,
        ablation=bench.references.kind,
        n_edges=bench.count,
        n_edges_total=bench.layout.n_edges,
        steps=search.schedule.steps,
        starts=list(search.starts),
        bar=search.bar,
        exact_bar=search.exact,
        kl=mean_estimate(search.measured.kl, search.measured.group),
        exact_match=mean_estimate(search.measured.exact_match, search.measured.group),
        corrupted_kl=mean_estimate(bed.corrupted.kl, bed.corrupted.group),
        n_pairs=len(search.measured.kl),
        n_sentences=len(search.measured.group.unique()),
        free=free,
        rivals=list(rivals),
        edges=edges.tolist(),
        hold=hold[edges].tolist(),
        hardest={graph.edge_name(edge): share for share, edge in hardest},
        core=int(core.sum()),
        redundancy=_redundancy(bed, first, _kept(least, first)) if agreed else None,
        cross={name: _cross(one, first, _kept(least, first)) for name, one in beds.items()},
        control=None,
    )


def _kept(one: RivalCircuit, like: Bool[Tensor, "edge"]) -> Bool[Tensor, "edge"]:
    kept = torch.zeros_like(like)
    kept[one.edges] = True
    return kept


def _hold(first: Bool[Tensor, "edge"], rivals: Sequence[RivalCircuit]) -> Float[Tensor, "edge"]:
    """For every edge of the circuit the least share at which the rival keeps it; 1 where only the circuit does."""
    hold = torch.ones(len(first), dtype=torch.float64)
    for one in sorted(rivals, key=lambda one: -one.n_common):
        hold[_kept(one, first) & first] = one.share
    return hold


def _redundancy(bed: TestBed, first: Bool[Tensor, "edge"], rival: Bool[Tensor, "edge"]) -> Redundancy:
    removed = [bed.run(~edges[None]).kl for edges in (first, rival, first | rival)]
    group = bed.full.group
    ratio = statistic(lambda means: means[2] / (means[0] + means[1]), torch.stack(removed), group).estimate()
    alone, other, both = (mean_estimate(kl, group) for kl in removed)
    return Redundancy(first=alone, rival=other, both=both, ratio=ratio)


def _cross(bed: TestBed, first: Bool[Tensor, "edge"], rival: Bool[Tensor, "edge"]) -> dict[str, Estimate]:
    sets = {"circuit": first, "rival": rival, "common": first & rival, "both": first | rival}
    found = {name: bed.run(edges[None]) for name, edges in sets.items()}
    return {name: mean_estimate(one.kl, one.group) for name, one in found.items()}
