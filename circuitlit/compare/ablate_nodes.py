"""Nodes and edges ablated: one by one, the best together, and a chosen set, each beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from torch import Tensor

from circuitlit.compare.effects import (
    ablated_text,
    effects,
    mean_over,
    node_weights,
    normalised_loss,
    ranked_nodes,
    specificity,
    text_kl,
    without_edges,
    without_nodes,
)
from circuitlit.compare.intervention_case import Case
from circuitlit.compare.intervention_figures import Ablations, Cumulative, SetAblation
from circuitlit.evaluate import Estimate, TestBed
from circuitlit.evaluate.matched import matched_edges, matched_nodes, mean_overlap
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import LEAST_DRAWS, rank_p, until_clear
from circuitlit.objective import Outcome


def ablate(case: Case, candidates: int | None, n_edges: int, steps: Sequence[int], level: float) -> Ablations:
    """Nodes and edges one by one, the best ones together, and the chosen set, each beside random ones."""
    bed, graph = case.bed, case.subject.graph
    ranked, draws = ranked_nodes(case.circuit), case.draws or LEAST_DRAWS
    names = list(dict.fromkeys([*case.chosen, *ranked[:candidates]]))
    nodes = effects(bed.full, {n: bed.run(without_nodes(graph, [n])) for n in names}, case.kinds)
    shares = case.circuit.shares
    best = shares.argsort(descending=True, stable=True)[: min(n_edges, int((shares > 0).sum()))].tolist()
    edges = effects(bed.full, {graph.edge_name(e): bed.run(without_edges(graph, [e])) for e in best}, case.kinds)
    single = [matched_nodes(graph, [name], 1, seed)[0][0] for seed, name in zip(range(draws), cycle(names))]
    sparse = [matched_edges(graph, [edge], 1, seed)[0][0] for seed, edge in zip(range(draws), cycle(best))]
    return Ablations(
        nodes=nodes,
        random_node=_random(case, [without_nodes(graph, [node]) for node in single]),
        edges=edges,
        random_edge=_random(case, [without_edges(graph, [edge]) for edge in sparse]),
        cumulative=_cumulative(case, list(dict.fromkeys([*case.chosen, *ranked])), steps),
        set=_set_ablated(case),
        weights=node_weights(case.circuit),
        weight=case.circuit.scores.meaning,
        level=level,
    )


def _random(case: Case, cuts: Sequence[Tensor]) -> Estimate:
    """Mean drop over random interventions, on the first pairs."""
    pairs = min(case.control_pairs, len(case.bed.full.kl))
    return mean_over(case.bed.full.head(pairs), [case.bed.run(cut, pairs) for cut in cuts])


def _cumulative(case: Case, order: list[str], steps: Sequence[int]) -> list[Cumulative]:
    """The best 1, 2, 4 ... nodes ablated together, and random sets like each."""
    graph, bed, rows = case.subject.graph, case.bed, []
    for size in sorted({min(size, len(order)) for size in steps}):
        outcome = bed.run(without_nodes(graph, order[:size]))
        sets = matched_nodes(graph, order[:size], case.draws or LEAST_DRAWS, case.seed)
        drop = mean_estimate(bed.full.metric - outcome.metric, outcome.group)
        random = _random(case, [without_nodes(graph, members) for members in sets])
        overlap = mean_overlap(order[:size], sets)
        rows.append(Cumulative(size, order[size - 1], drop, float(outcome.kl.mean()), random, overlap))
    return rows


def _set_ablated(case: Case) -> SetAblation:
    """The chosen nodes together: drop, collateral KL and specificity, beside random sets."""
    graph, bed, kind = case.subject.graph, case.bed, case.bench.references.kind
    cut = without_nodes(graph, case.chosen)
    outcome = bed.run(cut)
    pairs = min(case.control_pairs, len(bed.full.kl))
    own = float((bed.full.metric - outcome.metric)[:pairs].mean())
    tries = ((members, bed.run(without_nodes(graph, members), pairs)) for members in case.sets())
    ran = until_clear([own], tries, lambda one: [_drop(bed, one[1])])
    sets = [members for members, _ in ran]
    on_text = kind if kind in ("interchange", "zero") else "mean"

    def collateral(nodes: Sequence[str]) -> Tensor:
        return text_kl(case.subject, case.text, ablated_text(case.writers, case.text, nodes, on_text))

    return SetAblation(
        nodes=case.chosen,
        drop=mean_estimate(bed.full.metric - outcome.metric, outcome.group),
        random=mean_over(bed.full.head(pairs), [other for _, other in ran]),
        rank_p=rank_p(own, [_drop(bed, other) for _, other in ran]),
        draws=len(ran),
        overlap=mean_overlap(case.chosen, sets),
        text_ablated_by=on_text,
        collateral_kl=mean_estimate(collateral(case.chosen), None),
        random_collateral_kl=mean_of([float(collateral(s).mean()) for s in sets[:LEAST_DRAWS]]),
        **(_specific(case, cut, outcome, sets[:LEAST_DRAWS]) if case.others else {}),
    )


def _drop(bed: TestBed, other: Outcome) -> float:
    """Mean drop of the metric on the first pairs."""
    return float((bed.full.head(len(other.kl)).metric - other.metric).mean())


def _specific(case: Case, cut: Tensor, outcome: Outcome, sets: list[list[str]]) -> dict[str, Any]:
    """How much more the own task is hurt than others, for `SetAblation`."""
    graph = case.subject.graph
    losses = [normalised_loss(bed, bed.run(cut), seed) for seed, bed in enumerate(case.others.values(), 1)]
    own, random = normalised_loss(case.bed, outcome), []
    for members in sets:
        other = without_nodes(graph, members)
        shares = [float(normalised_loss(bed, bed.run(other)).value) for bed in (case.bed, *case.others.values())]
        random.append(shares[0] - sum(shares[1:]) / len(case.others))
    return {
        "specificity": specificity(own, losses),
        "random_specificity": mean_of(random),
        "own_loss": float(own.value),
        "other_tasks": {name: float(loss.value) for name, loss in zip(case.others, losses, strict=True)},
    }
