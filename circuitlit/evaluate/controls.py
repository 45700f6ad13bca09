"""Circuits that know nothing, to compare with: random ones, and shuffles that keep every node's number of edges."""

from __future__ import annotations

import random

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitlit.graph import Graph

SWAPS_PER_EDGE = 10


def random_circuit(graph: Graph, count: int, seed: int) -> Bool[Tensor, "1 edge"]:
    """`count` edges drawn uniformly."""
    order = torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(1, graph.n_edges, dtype=torch.bool)
    kept[0, order[:count]] = True
    return kept


def shuffled_circuit(graph: Graph, kept: Bool[Tensor, "1 edge"], seed: int) -> Bool[Tensor, "1 edge"]:
    """A random circuit in which every writer and every reader has as many edges as in `kept`.

    Edges are rewired by double swaps (u->v, x->y become u->y, x->v) wherever both new edges exist in the graph and are
    not in the circuit yet. Where no swap is possible the circuit stays as it is.

    Source: Maslov and Sneppen, Science 296 (2002): degree-preserving randomisation.
    """
    draw = random.Random(seed)
    edges = [(int(graph.writer_of[e]), int(graph.reader_of[e])) for e in kept[0].nonzero().flatten()]
    present = set(edges)
    visible = graph.visible.tolist()
    for _ in range(SWAPS_PER_EDGE * len(edges)):
        i, j = draw.randrange(len(edges)), draw.randrange(len(edges))
        (u, v), (x, y) = edges[i], edges[j]
        if u >= visible[y] or x >= visible[v] or (u, y) in present or (x, v) in present:
            continue
        present -= {(u, v), (x, y)}
        edges[i], edges[j] = (u, y), (x, v)
        present |= {edges[i], edges[j]}
    shuffled = torch.zeros_like(kept)
    index = [int(graph.offsets[reader]) + writer for writer, reader in edges]
    shuffled[0, index] = True
    return shuffled
