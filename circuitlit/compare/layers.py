"""Which layers a circuit, or the difference of two circuits, lies in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.graph import Circuit, Graph


def circuit_layers(circuit: Circuit) -> Float[Tensor, "layer"]:
    """Each layer's share of a circuit's weight; see `spread_over_layers`."""
    return spread_over_layers(circuit.graph, circuit.shares)


def changed_layers(base: Circuit, tuned: Circuit) -> Float[Tensor, "layer"]:
    """Each layer's share of what changed: absolute differences of the edges' shares of their circuits' weights.

    Source: CircuitLoRA, Wang et al. (arXiv 2502.11812) algorithm 1, where an edge counts for its writer's layer alone
    (and the input's edges for layer 0, which so always leads) and scores are not normalised (so that the layers are
    those of the larger circuit).
    """
    return spread_over_layers(base.graph, (base.shares - tuned.shares).abs())


def spread_over_layers(graph: Graph, edges: Float[Tensor, "edge"]) -> Float[Tensor, "layer"]:
    """A quantity of edges by layer, as shares: half for the writer's layer, half for the reader's.

    Input and logits are in no layer, so that the other end gets the whole; an edge between them counts nowhere.
    """
    writer = (graph.writer_of - graph.inputs).div(graph.writers_per_layer, rounding_mode="floor")
    writer = torch.where(graph.writer_of < graph.inputs, -1, writer)
    reader = graph.reader_of.div(graph.readers_per_layer, rounding_mode="floor")
    reader = torch.where(reader >= graph.n_layers, -1, reader)
    total = torch.zeros(graph.n_layers, dtype=torch.float64)
    for own, other in ((writer, reader), (reader, writer)):
        inside = own >= 0
        weight = torch.where(other >= 0, 0.5, 1.0)[inside].double()
        total.index_add_(0, own[inside], edges.cpu().double()[inside] * weight)
    return total / total.sum() if float(total.sum()) > 0 else total


def layer_nodes(graph: Graph, layers: list[int]) -> list[str]:
    """All heads and MLPs of some layers."""
    return [name for layer in layers for name in (*(f"a{layer}.h{head}" for head in range(graph.n_heads)), f"m{layer}")]


def top_layers(shares: Float[Tensor, "layer"], count: int) -> list[int]:
    """The layers with the largest shares, in their order."""
    return sorted(shares.argsort(descending=True, stable=True)[:count].tolist())
