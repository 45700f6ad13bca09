"""The reachable edges of a circuit in order of strength, and the nodes they join as a reader sees them."""

from __future__ import annotations

from dataclasses import dataclass

from circuitlit.graph import Circuit, Graph

KINDS: tuple[str, ...] = ("q", "k", "v", "mlp", "logits")


@dataclass(frozen=True)
class RankedEdge:
    """One reachable edge.

    Attributes:
        name: `a0.h1->m3`.
        source, target: the nodes it joins; with grouped-query attention a key/value head is a node, `a3.kv1`.
        kind: what it feeds, one of `KINDS`.
        source_layer, target_layer: -1 for the input, the number of blocks for the logits.
        score: as the method gave it (log-alpha of a gate, nats or logits of an attribution).
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
    """All reachable edges, strongest first; of an edge kept at several token roles, its strongest role."""
    graph, scores = circuit.graph, circuit.scores
    reachable = circuit.reachable.cpu()
    strength, row = scores.importance().cpu().masked_fill(~reachable, -float("inf")).max(0)
    order = strength.sort(descending=True, stable=True).indices[: int(reachable.any(0).sum())]
    best = scores.values.cpu().gather(0, row[None])[0]
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


def _target(graph: Graph, reader: int) -> tuple[str, str]:
    """Node and kind of a reader: `a3.h2<q>` is ("a3.h2", "q")."""
    name = graph.readers[reader]
    if not name.endswith(">"):
        return name, "logits" if name == "logits" else "mlp"
    node, kind = name[:-3], name[-2]
    grouped = kind != "q" and graph.n_kv_heads < graph.n_heads
    return node.replace(".h", ".kv") if grouped else node, kind
