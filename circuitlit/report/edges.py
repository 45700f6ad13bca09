"""The reachable edges of a circuit in the order of their scores, and the nodes they join as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.heads.explain.explanation import EdgeEffects

KINDS: tuple[str, ...] = ("q", "k", "v", "mlp", "logits", "router")


@dataclass(frozen=True)
class RankedEdge:
    """One reachable edge.

    Attributes:
        name: `a0.h1->m3`.
        source, target: the nodes it joins; with grouped-query attention a key/value head is a node, `a3.kv1`.
        kind: what it feeds, one of `KINDS`.
        source_layer, target_layer: -1 for the input, the number of blocks for the logits.
        score: its effect with its sign; where scores are of another kind, its weight (see `EdgeScores.meaning`).
        role: the token role that has this score; empty where one mask holds for all positions.
    """

    name: str
    source: str
    target: str
    kind: str
    source_layer: int
    target_layer: int
    score: float
    role: str = ""


def ranked_edges(circuit: Circuit) -> list[RankedEdge]:
    """All reachable edges, those first that selection takes first; of an edge kept at several token roles, its best.

    For effects that is the largest first. Gates come in the order in which ever smaller circuits would keep them.
    """
    graph, scores = circuit.graph, circuit.scores
    reachable = circuit.reachable.cpu()
    strength, row = scores.order.cpu().masked_fill(~reachable, -float("inf")).max(0)
    order = strength.sort(descending=True, stable=True).indices[: int(reachable.any(0).sum())]
    best = scores.signed.cpu().gather(0, row[None])[0]
    ranked = []
    for edge in order.tolist():
        writer, reader = int(graph.writer_of[edge]), int(graph.reader_of[edge])
        target, kind = _target(graph, reader)
        ranked.append(
            RankedEdge(
                name=graph.edge_name(edge),
                source=graph.writers[writer],
                target=target,
                kind=kind,
                source_layer=(writer - graph.inputs) // graph.writers_per_layer if writer >= graph.inputs else -1,
                target_layer=reader // graph.readers_per_layer,
                score=float(best[edge]),
                role=scores.roles[int(row[edge])] if scores.roles else "",
            )
        )
    return ranked


def edges_by_effect(circuit: Circuit, effects: Mapping[str, float]) -> list[RankedEdge]:
    """All reachable edges, those with the largest effects first, with them as scores; those without one come last."""
    ranked = ranked_edges(circuit)
    known = [replace(edge, score=effects[edge.name]) for edge in ranked if edge.name in effects]
    return sorted(known, key=lambda edge: -abs(edge.score)) + [edge for edge in ranked if edge.name not in effects]


def effects_note(effects: EdgeEffects) -> str:
    """What the estimates are, and how far they agree with what cutting edges does."""
    said = (
        "The estimated effect of keeping the edge, to first order: above 0 it helps, and edges are ranked by its size. "
    )
    if effects.correlation is None or effects.p is None:
        return said
    return said + (
        f"{len(effects.measured)} edges, half of them random, were cut one by one: Spearman's correlation of that loss "
        f"with the estimate is {effects.correlation:.2f} (p = {effects.p:.2g})."
    )


def ranking_note(scores: EdgeScores) -> str:
    """What edges are ranked by and what the number beside them is, in a sentence or two."""
    if scores.kind == "gate":
        return (
            "In the order in which ever smaller circuits would keep them. The number is the probability that the "
            "edge's gate is open under its full noise: how sure the masks are of the edge, not how large its effect is."
        )
    if scores.kind == "share":
        return f"Ranked by the number beside them: {scores.meaning}."
    by = "its size" if scores.ranking == "absolute" else "it"
    unit = f", in {scores.unit}" if scores.unit else ""
    return f"The number is the estimated effect of keeping the edge{unit}; above 0 it helps. Ranked by {by}."


def _target(graph: Graph, reader: int) -> tuple[str, str]:
    """Node and kind of a reader: `a3.h2<q>` is ("a3.h2", "q")."""
    name = graph.readers[reader]
    if not name.endswith(">"):
        return name, "logits" if name == "logits" else "mlp"
    node, kind = name.rstrip(">").split("<")
    if kind == "router":
        return node, kind
    grouped = kind != "q" and graph.n_kv_heads < graph.n_heads
    return node.replace(".h", ".kv") if grouped else node, kind
