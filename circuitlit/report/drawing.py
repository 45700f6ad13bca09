"""What the page's graph is drawn from: nodes, the top edges, whose they are, who leads on to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitlit.graph import Graph
from circuitlit.report.circuit_figure import colours_of, node_places
from circuitlit.report.edges import KINDS, RankedEdge

DRAWN = 100  # lines at first
DRAWABLE = 1000  # of each circuit; so many can be drawn anew while one looks


@dataclass(frozen=True)
class Layer:
    """Another circuit in the same graph.

    Attributes:
        name: that the reader sees.
        edges: its reachable edges, top first.
    """

    name: str
    edges: Sequence[RankedEdge]


@dataclass(frozen=True)
class Beside:
    """What a circuit is drawn with.

    Attributes:
        layers: other circuits.
        core: names of the edges that are drawn bold.
        often: by name, the share of some circuits that hold an edge, for its opacity; empty takes effects.
        note: what core and often are.
        groups: nodes by the names of groups.
    """

    layers: Sequence[Layer] = ()
    core: frozenset[str] = frozenset()
    often: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


def drawing(
    graph: Graph,
    edges: Sequence[RankedEdge],
    value: str,
    known: Mapping[str, Mapping[str, str]] | None = None,
    beside: Beside | None = None,
) -> dict[str, Any]:
    """The top edges as columns, small enough for a page.

    Args:
        graph: shape of the model.
        edges: all reachable edges, top first.
        value: what their number is.
        known: by node its role and what else the page says of it.
        beside: other circuits, and groups.

    Returns:
        nodes: names; level: layer of each, -1 for the input; size: in pixels; next: numbers of the nodes that go on
            from each, where these are not the node itself (a key/value head leads on to its query heads);
        source, target, kind: numbers, value, own (1 if it is this circuit's), of the `DRAWABLE` top edges of each
            circuit, the circuits' in turn; role: numbers in `roles`; often, core: see `Beside`;
        layers: of each other circuit its name and, by edge, whether it has it;
        kinds, colours, roles, value_name, note, signed, known, groups; n_edges: of this circuit; drawn: lines at first.
    """
    beside = beside or Beside()
    names = list(node_places(graph))
    number = {name: place for place, name in enumerate(names)}
    sets = [{edge.name for edge in layer.edges} for layer in beside.layers]
    own = {edge.name for edge in edges}
    shown = _in_turn([edges[:DRAWABLE], *(layer.edges[:DRAWABLE] for layer in beside.layers)])
    degree = Counter(node for edge in edges for node in (edge.source, edge.target))
    largest = max(degree.values(), default=1)
    roles = sorted({edge.role for edge in shown if edge.role})
    return {
        "nodes": names,
        "level": [level_of(graph, name) for name in names],
        "size": [round(12 + 16 * (degree[name] / largest) ** 0.5) for name in names],
        "next": {number[name]: [number[head] for head in heads] for name, heads in followers(graph, names)},
        "source": [number[edge.source] for edge in shown],
        "target": [number[edge.target] for edge in shown],
        "kind": [KINDS.index(edge.kind) for edge in shown],
        "value": [float(f"{edge.score:.4g}") for edge in shown],
        "own": [int(edge.name in own) for edge in shown],
        "role": [roles.index(edge.role) if edge.role else -1 for edge in shown],
        "often": [round(beside.often.get(edge.name, 0.0), 3) for edge in shown] if beside.often else None,
        "core": [int(edge.name in beside.core) for edge in shown] if beside.core else None,
        "layers": [
            {"name": layer.name, "has": [int(edge.name in held) for edge in shown]}
            for layer, held in zip(beside.layers, sets, strict=True)
        ],
        "kinds": list(colours_of(graph)),
        "colours": list(colours_of(graph).values()),
        "roles": roles,
        "value_name": value,
        "note": beside.note,
        "signed": any(edge.score < 0 for edge in shown),
        "known": dict(known or {}),
        "groups": {name: list(nodes) for name, nodes in beside.groups.items()},
        "n_edges": len(edges),
        "drawn": min(DRAWN, len(shown)),
    }


def _in_turn(lists: Sequence[Sequence[RankedEdge]]) -> list[RankedEdge]:
    """First the top edge of each list, then the second of each; an edge once."""
    found: dict[str, RankedEdge] = {}
    for place in range(max(map(len, lists))):
        for edges in lists:
            if place < len(edges):
                found.setdefault(edges[place].name, edges[place])
    return list(found.values())


def level_of(graph: Graph, name: str) -> int:
    """Layer of a node, -1 for an input; the logits come after the last one."""
    if name == "logits":
        return graph.n_layers
    return int(name[1:].split(".")[0]) if name[0] in "am" else -1


def followers(graph: Graph, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Nodes whose input shapes what others write: a key/value head's all that share it, with a joint norm all heads."""
    group = graph.n_heads // graph.n_kv_heads
    found = []
    for name in names:
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
