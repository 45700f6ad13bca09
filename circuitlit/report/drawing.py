"""What the page's script needs to draw the circuit anew: places of nodes, the top edges, who leads on to whom."""

from __future__ import annotations

from typing import Any

from circuitlit.graph import Graph
from circuitlit.report.circuit_figure import COLOURS, node_places
from circuitlit.report.edges import KINDS, RankedEdge

DRAWABLE = 2000


def drawing(graph: Graph, edges: list[RankedEdge], drawn: int) -> dict[str, Any]:
    """The top edges as columns, small enough for a page.

    Args:
        graph: shape of the model.
        edges: all reachable edges, top first.
        drawn: how many of them are lines at first.

    Returns:
        nodes: names; places: x and y of each; next: numbers of the nodes that go on from each, where these are not the
            node itself (a key/value head leads on to its query heads);
        source, target, kind: numbers, and score, of the `DRAWABLE` top edges; role: numbers in `roles`;
        kinds, colours, roles: names; n_edges: of all; drawn: lines at first.
    """
    places = node_places(graph)
    number = {name: place for place, name in enumerate(places)}
    shown = edges[:DRAWABLE]
    roles = sorted({edge.role for edge in shown if edge.role})
    return {
        "nodes": list(places),
        "places": [list(place) for place in places.values()],
        "next": {number[name]: [number[head] for head in heads] for name, heads in _followers(graph, places)},
        "source": [number[edge.source] for edge in shown],
        "target": [number[edge.target] for edge in shown],
        "kind": [KINDS.index(edge.kind) for edge in shown],
        "score": [float(f"{edge.score:.5g}") for edge in shown],
        "role": [roles.index(edge.role) if edge.role else -1 for edge in shown],
        "kinds": list(KINDS),
        "colours": list(COLOURS.values()),
        "roles": roles,
        "n_edges": len(edges),
        "drawn": min(drawn, len(shown)),
    }


def _followers(graph: Graph, places: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Nodes whose input shapes what others write: a key/value head's all that share it, with a joint norm all heads."""
    group = graph.n_heads // graph.n_kv_heads
    found = []
    for name in places:
        if name[0] != "a":
            continue
        layer, head = name[1:].split(".")
        heads = range(graph.n_heads)
        if not graph.coupled:
            if not head.startswith("kv"):
                continue
            heads = range(int(head[2:]) * group, (int(head[2:]) + 1) * group)
        found.append((name, [f"a{layer}.h{number}" for number in heads]))
    return found
