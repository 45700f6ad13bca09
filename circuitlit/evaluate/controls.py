"""Circuits that know nothing, to compare with: random ones, and shuffles that keep every node's number of edges."""

from __future__ import annotations

import random

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitlit.graph import Graph

SWAPS_PER_EDGE = 10


def random_circuit(graph: Graph, count: int, seed: int, copies: int = 1) -> Bool[Tensor, "copies edge"]:
    """`count` edges drawn uniformly, from all rows where token roles have rows of their own."""
    order = torch.randperm(copies * graph.n_edges, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(copies * graph.n_edges, dtype=torch.bool)
    kept[order[:count]] = True
    return kept.view(copies, graph.n_edges)


def shuffled_circuit(graph: Graph, kept: Bool[Tensor, "copies edge"], seed: int) -> Bool[Tensor, "copies edge"]:
    """A random circuit in which every writer and every reader has as many edges as in `kept`, row by row.

    Edges are rewired by double swaps (u->v, x->y become u->y, x->v) wherever both new edges exist in the graph and are
    not in the circuit yet. Where no swap is possible the circuit stays as it is.

    Source: Maslov and Sneppen, Science 296 (2002): degree-preserving randomisation.
    """
    draw = random.Random(seed)
    return torch.stack([_rewired(graph, row, draw) for row in kept])


def _rewired(graph: Graph, kept: Bool[Tensor, "edge"], draw: random.Random) -> Bool[Tensor, "edge"]:
    edges = list(zip(graph.writer_of[kept].tolist(), graph.reader_of[kept].tolist(), strict=True))
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
    offsets = graph.offsets.tolist()
    shuffled = torch.zeros_like(kept)
    shuffled[[offsets[reader] + writer for writer, reader in edges]] = True
    return shuffled
