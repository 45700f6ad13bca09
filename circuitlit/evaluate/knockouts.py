"""What a circuit leaves out and what in it is idle: completeness and minimality, by ablating edges."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, mean_estimate, ratio_estimate, statistic
from circuitlit.evaluate.summary import Summary, summarise
from circuitlit.graph import Circuit
from circuitlit.graph.select import edges_from
from circuitlit.objective import Outcome

Part = TypeVar("Part", int, str)


@dataclass(frozen=True)
class Completeness:
    """What the rest of the model does without the circuit.

    Attributes:
        complement: the model without the circuit's edges; its `kl` is the damage that their loss does.
        completeness: 1 - faithfulness of the complement: 1 says that without the circuit nothing of the behaviour is
            left, 0 that the rest does it alone; values outside exist.
        knockout_gap: mean of |f(circuit without K) - f(model without K)| over random K, in units of faithfulness; 0 is
            a circuit that stands in for the model under any damage. None where no K was drawn.
        n_knockouts: how many K.
        n_pairs: pairs that it is measured on.
    """

    complement: Summary
    completeness: Estimate
    knockout_gap: Estimate | None
    n_knockouts: int
    n_pairs: int

    def to_dict(self) -> dict[str, object]:
        """Plain types for result.json."""
        return asdict(self)


@dataclass(frozen=True)
class Minimality:
    """What the circuit loses with one of its parts.

    Attributes:
        kl_increase: mean KL(full || circuit without the part) - KL(full || circuit), nats.
        faithfulness_loss: mean faithfulness of the circuit minus that without the part.
        idle_share: share of the parts whose loss does not raise the mean KL.
        worst: the parts whose loss raises the KL most: name and increase in nats.
        n_parts: parts measured, and `n_candidates` of how many they were drawn.
        n_pairs: pairs that it is measured on.
    """

    kl_increase: Estimate
    faithfulness_loss: Estimate
    idle_share: float
    worst: tuple[tuple[str, float], ...]
    n_parts: int
    n_candidates: int
    n_pairs: int

    def to_dict(self) -> dict[str, object]:
        """Plain types for result.json."""
        return asdict(self)


def completeness(
    bed: TestBed, circuit: Circuit, knockouts: int = 0, pairs: int | None = None, seed: int = 0
) -> Completeness:
    """Run the model without the circuit, and both without random sets K of the circuit's nodes.

    Each K holds every node of the circuit with probability 1/2; the input stays.

    Source: Wang et al. (arXiv 2211.00593) section 4: a circuit C of a model M is complete if F(C \\ K) = F(M \\ K) for
    every K in C; the complement is the case K = C, taken edge by edge instead of node by node.
    """
    outcome = bed.run(~circuit.reachable, pairs)
    complement = summarise([outcome], bed.full, bed.corrupted, seed)
    top, bottom = (side.metric[: len(outcome.kl)].double() for side in (bed.full, bed.corrupted))
    complete = ratio_estimate(top - outcome.metric, top - bottom, outcome.group, seed)
    nodes = circuit.nodes()
    draw = random.Random(seed)
    gaps = []
    for _ in range(knockouts if nodes else 0):
        damaged = ~edges_from(circuit.graph, [node for node in nodes if draw.random() < 0.5])
        ours, theirs = (bed.run(kept & damaged, pairs) for kept in (circuit.kept, torch.ones_like(circuit.kept)))
        gaps.append((ours.metric - theirs.metric).double())
    gap = _gap(torch.stack(gaps), _effect(bed, gaps[0]), outcome.group, seed) if gaps else None
    return Completeness(complement, complete, gap, len(gaps), len(outcome.kl))


def node_minimality(
    bed: TestBed, circuit: Circuit, parts: int | None = None, pairs: int | None = None, seed: int = 0
) -> Minimality:
    """What the circuit loses with each of its nodes, or with `parts` nodes drawn.

    A node is removed with its outgoing edges, without which it is not heard.

    Source: Wang et al. (arXiv 2211.00593) section 4, minimality, with K empty: |F(C \\ {v}) - F(C)|, signed here.
    """
    nodes = circuit.nodes()
    removed = {node: edges_from(circuit.graph, [node]) for node in _drawn(nodes, parts, seed)}
    return _minimality(bed, circuit, removed, len(nodes), pairs, seed)


def edge_minimality(
    bed: TestBed, circuit: Circuit, parts: int | None = None, pairs: int | None = None, seed: int = 0
) -> Minimality:
    """What the circuit loses with each of its reachable edges (in all token roles), or with `parts` edges drawn."""
    graph = circuit.graph
    candidates = circuit.reachable.any(0).nonzero()[:, 0].tolist()
    edges = _drawn(candidates, parts, seed)
    removed = {graph.edge_name(edge): torch.arange(graph.n_edges) == edge for edge in edges}
    return _minimality(bed, circuit, removed, len(candidates), pairs, seed)


def _minimality(
    bed: TestBed,
    circuit: Circuit,
    removed: dict[str, Bool[Tensor, "edge"]],
    candidates: int,
    pairs: int | None,
    seed: int,
) -> Minimality:
    whole = bed.run(circuit.kept, pairs)
    count = len(whole.kl)
    if not removed:
        nothing = Estimate()
        return Minimality(nothing, nothing, 0.0, (), 0, candidates, count)
    without: dict[str, Outcome] = {name: bed.run(circuit.kept & ~cut, pairs) for name, cut in removed.items()}
    kl = torch.stack([outcome.kl - whole.kl for outcome in without.values()]).double()
    lost = torch.stack([whole.metric - outcome.metric for outcome in without.values()]).double()
    by_part = dict(zip(without, kl.mean(1).tolist(), strict=True))
    worst = sorted(by_part.items(), key=lambda item: -item[1])[:10]
    idle = sum(increase <= 0 for increase in by_part.values()) / len(by_part)
    return Minimality(
        mean_estimate(kl, whole.group, seed),
        ratio_estimate(lost, _effect(bed, lost[0]), whole.group, seed),
        idle,
        tuple(worst),
        len(by_part),
        candidates,
        count,
    )


def _drawn(candidates: list[Part], count: int | None, seed: int) -> list[Part]:
    """Some of the candidates, in their order."""
    if count is None or count >= len(candidates):
        return candidates
    return [candidates[place] for place in sorted(random.Random(seed).sample(range(len(candidates)), count))]


def _effect(bed: TestBed, like: Float[Tensor, "pair"]) -> Float[Tensor, "pair"]:
    """Full model's metric minus the corrupted run's, on the first pairs: what faithfulness divides by."""
    count = len(like)
    return (bed.full.metric[:count] - bed.corrupted.metric[:count]).double()


def _gap(
    gaps: Float[Tensor, "knockout pair"], scale: Float[Tensor, "pair"], groups: Int[Tensor, "pair"], seed: int
) -> Estimate:
    """Mean over knockouts of the absolute difference in faithfulness, means over pairs first."""
    columns = torch.cat([gaps, scale[None]])
    return statistic(lambda means: (means[:-1] / means[-1]).abs().mean(0), columns, groups, seed).estimate()
