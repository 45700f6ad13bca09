"""Ablation of nodes and edges for the verb intervene: one by one, together, as a set, beside matched random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any

from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.compare.effects import (
    ablated_text,
    as_dict,
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
from circuitlit.compare.matched import matched_edges, matched_nodes, mean_overlap
from circuitlit.compare.writes import Writers
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import TestBed
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws, rank_p, until_clear
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.objective import Outcome

CLAIMS = 4  # of the chosen set: ablation, doses, its writes and its weights transferred


@dataclass
class Stage:
    """What all interventions work with."""

    cfg: DictConfig
    bench: Workbench
    bed: TestBed
    circuit: Circuit
    chosen: list[str]
    kinds: dict[str, str]
    text: Int[Tensor, "passage pos"]
    writers: Writers
    others: dict[str, TestBed] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        """The model that is intervened on."""
        return self.bench.subject

    def sets(self) -> list[list[str]]:
        """Random sets like the chosen one."""
        return matched_nodes(self.subject.graph, self.chosen, self.draws, self.cfg.seed)

    @property
    def draws(self) -> int:
        """Most random sets."""
        return self.cfg.intervene.draws or enough_draws(CLAIMS)


def ablation(stage: Stage) -> dict[str, Any]:
    """Nodes and edges one by one, the best ones together, and the chosen set, each beside random ones."""
    settings, bed, graph = stage.cfg.intervene, stage.bed, stage.subject.graph
    ranked, draws = ranked_nodes(stage.circuit), settings.draws or LEAST_DRAWS
    names = list(dict.fromkeys([*stage.chosen, *ranked[: settings.candidates]]))
    nodes = effects(bed.full, {n: bed.run(without_nodes(graph, [n])) for n in names}, stage.kinds)
    shares = stage.circuit.shares
    best = shares.argsort(descending=True, stable=True)[: min(settings.edges, int((shares > 0).sum()))].tolist()
    edges = effects(bed.full, {graph.edge_name(e): bed.run(without_edges(graph, [e])) for e in best}, stage.kinds)
    single = [matched_nodes(graph, [name], 1, seed)[0][0] for seed, name in zip(range(draws), cycle(names))]
    cuts = [without_nodes(graph, [node]) for node in single]
    sparse = [matched_edges(graph, [edge], 1, seed)[0][0] for seed, edge in zip(range(draws), cycle(best))]
    return {
        "nodes": [asdict(effect) for effect in nodes],
        "random_node": _random(stage, cuts),
        "edges": [asdict(effect) for effect in edges],
        "random_edge": _random(stage, [without_edges(graph, [edge]) for edge in sparse]),
        "cumulative": _cumulative(stage, list(dict.fromkeys([*stage.chosen, *ranked]))),
        "set": _set_ablated(stage),
        "weights": node_weights(stage.circuit),
        "weight": stage.circuit.scores.meaning,
        "level": settings.level,
    }


def _random(stage: Stage, cuts: Sequence[Tensor]) -> dict[str, float | None]:
    """Mean drop over random interventions, on the first pairs."""
    pairs = min(stage.cfg.intervene.control_pairs, len(stage.bed.full.kl))
    return as_dict(mean_over(stage.bed.full.head(pairs), [stage.bed.run(cut, pairs) for cut in cuts]))


def _cumulative(stage: Stage, order: list[str]) -> list[dict[str, Any]]:
    """The best 1, 2, 4 ... nodes ablated together, and random sets like each."""
    graph, bed, rows = stage.subject.graph, stage.bed, []
    for size in sorted({min(size, len(order)) for size in stage.cfg.intervene.steps}):
        outcome = bed.run(without_nodes(graph, order[:size]))
        sets = matched_nodes(graph, order[:size], stage.cfg.intervene.draws or LEAST_DRAWS, stage.cfg.seed)
        rows.append(
            {
                "nodes": size,
                "added": order[size - 1],
                "drop": as_dict(mean_estimate(bed.full.metric - outcome.metric, outcome.group)),
                "kl": float(outcome.kl.mean()),
                "random": _random(stage, [without_nodes(graph, members) for members in sets]),
                "overlap": mean_overlap(order[:size], sets),
            }
        )
    return rows


def _set_ablated(stage: Stage) -> dict[str, Any]:
    """The chosen nodes together: drop, collateral KL and specificity, beside random sets."""
    graph, bed, kind = stage.subject.graph, stage.bed, stage.cfg.ablation.kind
    cut, tried = without_nodes(graph, stage.chosen), stage.sets()
    outcome = bed.run(cut)
    pairs = min(stage.cfg.intervene.control_pairs, len(bed.full.kl))
    own = float((bed.full.metric - outcome.metric)[:pairs].mean())
    ran = until_clear(
        [own], ((s, bed.run(without_nodes(graph, s), pairs)) for s in tried), lambda one: [_drop(bed, one[1])]
    )
    sets, drops = [members for members, _ in ran], [_drop(bed, other) for _, other in ran]
    on_text = "interchange" if kind == "interchange" else "zero" if kind == "zero" else "mean"

    def collateral(nodes: Sequence[str]) -> Tensor:
        return text_kl(stage.subject, stage.text, ablated_text(stage.writers, stage.text, nodes, on_text))

    found: dict[str, Any] = {
        "nodes": stage.chosen,
        "drop": as_dict(mean_estimate(bed.full.metric - outcome.metric, outcome.group)),
        "random": as_dict(mean_over(bed.full.head(pairs), [other for _, other in ran])),
        "rank_p": rank_p(own, drops),
        "draws": len(ran),
        "overlap": mean_overlap(stage.chosen, sets),
        "text_ablated_by": on_text,
        "collateral_kl": as_dict(mean_estimate(collateral(stage.chosen), None)),
        "random_collateral_kl": as_dict(mean_of([float(collateral(s).mean()) for s in sets[:LEAST_DRAWS]])),
    }
    return found | _specificity(stage, cut, outcome, sets[:LEAST_DRAWS])


def _drop(bed: TestBed, other: Outcome) -> float:
    """Mean drop of the metric on the first pairs."""
    return float((bed.full.head(len(other.kl)).metric - other.metric).mean())


def _specificity(stage: Stage, cut: Tensor, outcome: Outcome, sets: list[list[str]]) -> dict[str, Any]:
    if not stage.others:
        return {"specificity": None, "other_tasks": {}}
    graph = stage.subject.graph
    losses = [normalised_loss(bed, bed.run(cut), seed) for seed, bed in enumerate(stage.others.values(), 1)]
    own = normalised_loss(stage.bed, outcome)
    random = []
    for members in sets:
        other = without_nodes(graph, members)
        shares = [float(normalised_loss(bed, bed.run(other)).value) for bed in (stage.bed, *stage.others.values())]
        random.append(shares[0] - sum(shares[1:]) / len(stage.others))
    return {
        "specificity": as_dict(specificity(own, losses)),
        "random_specificity": as_dict(mean_of(random)),
        "own_loss": float(own.value),
        "other_tasks": {name: float(loss.value) for name, loss in zip(stage.others, losses, strict=True)},
    }
