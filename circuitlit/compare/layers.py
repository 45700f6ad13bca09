"""Which layers a circuit, or the difference of two circuits, lies in."""

from __future__ import annotations

from collections.abc import Sequence

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


def union_layers(circuits: Sequence[Circuit]) -> Float[Tensor, "layer"]:
    """Each layer's share of the union of several tasks' circuits, cut to the size of the largest of them.

    An edge weighs the mean of its shares in the circuits that hold it, so that an edge of one task alone counts as much
    as one that all tasks use.

    Source: union circuits, Wang et al. (arXiv 2502.11812) section 5, whose scores are not normalised.
    """
    shares = torch.stack([circuit.shares.double() for circuit in circuits])
    held = (shares > 0).sum(0)
    weight = shares.sum(0) / held.clamp(min=1)
    least = weight.topk(min(max(circuit.n_edges for circuit in circuits), len(weight))).values[-1]
    return spread_over_layers(circuits[0].graph, torch.where(weight >= least, weight, 0.0))


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
