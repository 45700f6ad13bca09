"""Nodes by name: heads, MLPs and the input."""

from __future__ import annotations

from collections.abc import Collection

from circuitlit.errors import UserError
from circuitlit.graph.topology import INPUTS, Graph


def place_of(node: str) -> tuple[int, int | None]:
    """Layer and head of `a3.h1`; the head is None for an MLP and -1 for the attention's bias."""
    if node[0] == "m":
        return int(node[1:]), None
    layer, part = node[1:].split(".")
    return int(layer), -1 if part == "bias" else int(part[1:])


def node_name(layer: int, head: int) -> str:
    """`a3.h1`, or `a3.bias` for head -1."""
    return f"a{layer}.bias" if head < 0 else f"a{layer}.h{head}"


def known_nodes(graph: Graph, names: Collection[str], extra: Collection[str] = ()) -> list[str]:
    """The names as they are.

    Raises:
        UserError: one of them is no node of the graph.
    """
    for name in names:
        if name not in graph.writers and name not in extra:
            raise UserError(
                f"there is no node '{name}' in a graph of {graph.n_layers} layers x {graph.n_heads} heads; nodes are "
                "called input, a0.h0 (layer 0, head 0), m0"
            )
    return list(names)


def whole_layers(graph: Graph, nodes: Collection[str]) -> list[int]:
    """Layers all of whose heads are among the nodes."""
    return [layer for layer in range(graph.n_layers) if all(node_name(layer, h) in nodes for h in range(graph.n_heads))]


def plain_kinds(graph: Graph) -> dict[str, str]:
    """What MLPs and inputs are called in tables where heads have roles."""
    return {f"m{layer}": "mlp" for layer in range(graph.n_layers)} | dict.fromkeys(INPUTS, "input")
