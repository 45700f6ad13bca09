"""Circuits that know nothing, to compare with: random ones, and shuffles that keep every node's number of edges."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitlit.graph import Graph

TRIED = 0.9  # share of the matched pairs that a round tries to swap; below 1, so that any swap can happen alone
AT_ONCE = 2**26  # edges of all draws that are in memory together


def random_circuit(graph: Graph, count: int, seed: int, copies: int = 1) -> Bool[Tensor, "copies edge"]:
    """`count` edges drawn uniformly, from all rows where token roles have rows of their own."""
    order = torch.randperm(copies * graph.n_edges, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(copies * graph.n_edges, dtype=torch.bool)
    kept[order[:count]] = True
    return kept.view(copies, graph.n_edges)


def redrawn(
    kept: Bool[Tensor, "edge"], labels: Int[Tensor, "edge"], draws: int, seed: int
) -> Bool[Tensor, "draw edge"]:
    """Random sets of edges, each with as many edges under every label as `kept` has."""
    random = np.random.default_rng(seed)
    some = max(1, AT_ONCE // len(kept))
    parts = [_redrawn(kept.numpy(), labels.numpy(), min(some, draws - done), random) for done in range(0, draws, some)]
    return torch.from_numpy(np.concatenate(parts))


def _redrawn(
    edges: Bool[np.ndarray, "edge"], own: Int[np.ndarray, "edge"], draws: int, random: np.random.Generator
) -> Bool[np.ndarray, "draw edge"]:
    """Some of them at once.

    Places are drawn with replacement and those that hit a taken edge again, which is drawing without replacement. Where
    a label keeps more than half of its edges, the absent ones are drawn instead.
    """
    order, sizes = np.argsort(own, kind="stable"), np.bincount(own)
    counts = np.bincount(own[edges], minlength=len(sizes))
    inverted = counts > sizes / 2
    starts, few = sizes.cumsum() - sizes, np.where(inverted, sizes - counts, counts)
    taken = np.zeros(draws * len(edges), dtype=bool)
    owner = np.empty(len(taken), dtype=np.int64)
    label = np.tile(np.repeat(np.arange(len(sizes)), few), draws)
    row = np.repeat(np.arange(draws) * len(edges), few.sum())
    while len(label):
        place = row + order[starts[label] + (random.random(len(label)) * sizes[label]).astype(np.int64)]
        owner[place] = np.arange(len(place))
        won = ~taken[place] & (owner[place] == np.arange(len(place)))  # of equal new places one wins
        taken[place] = True
        label, row = label[~won], row[~won]
    return taken.reshape(draws, -1) ^ inverted[own]


def shuffled_circuit(graph: Graph, kept: Bool[Tensor, "copies edge"], seed: int) -> Bool[Tensor, "copies edge"]:
    """A random circuit in which every writer and every reader has as many edges as in `kept`, row by row."""
    return shuffled_circuits(graph, kept, 1, seed)[0]


def shuffled_circuits(
    graph: Graph, kept: Bool[Tensor, "copies edge"], draws: int, seed: int
) -> Bool[Tensor, "draw copies edge"]:
    """Random circuits in which every writer and every reader has as many edges as in `kept`, row by row."""
    seeds = np.random.SeedSequence(seed).generate_state(len(kept)).tolist()
    return torch.stack([shuffles(graph, row, draws, own) for row, own in zip(kept, seeds, strict=True)], 1)


def shuffles(graph: Graph, kept: Bool[Tensor, "edge"], draws: int, seed: int) -> Bool[Tensor, "draw edge"]:
    """Random circuits in which every writer and every reader has as many edges as in `kept`.

    Edges are rewired by double swaps (u->v, x->y become u->y, x->v) wherever both new edges exist in the graph and are
    not in the circuit yet. One chain of swaps leads from the circuit to a start from which as many swaps lead to every
    draw: a circuit that is random itself cannot be told from its draws, whether or not the chains are long enough.

    Source: Maslov and Sneppen, Science 296 (2002), swaps; Besag and Clifford, Biometrika 76 (1989), the common start.
    """
    random = np.random.default_rng(seed)
    start = _swapped(graph, kept.numpy(), 1, random)[0]
    some = max(1, AT_ONCE // graph.n_edges)
    parts = [_swapped(graph, start, min(some, draws - done), random) for done in range(0, draws, some)]
    return torch.from_numpy(np.concatenate(parts))


def _swapped(
    graph: Graph, kept: Bool[np.ndarray, "edge"], draws: int, random: np.random.Generator
) -> Bool[np.ndarray, "draw edge"]:
    """Chains of swaps from one circuit.

    Each round matches a draw's edges at random and swaps all matched pairs at once that stand in no other pair's way:
    neither by wanting the same edge nor by wanting one that another pair gives up. So a round and its reverse are
    equally probable, and all circuits of equal degrees are equally probable in the end. In small graphs most pairs
    stand in each other's way, which takes more rounds.
    """
    visible, offsets = graph.visible.numpy(), graph.offsets.numpy()
    edges = np.flatnonzero(kept)
    writer, reader = graph.writer_of.numpy()[edges], np.tile(graph.reader_of.numpy()[edges], draws)
    present = np.tile(kept, draws)
    wanted_by, contested = np.full(len(present), -1, dtype=np.int32), np.zeros(len(present), dtype=bool)
    for _ in range(20 + 4000 // max(10, len(edges))):
        row, pair = _matched(len(edges), draws, random)
        place = row * len(edges) + pair
        ends, wanted = reader[place], reader[place[::-1]]
        exists = writer[pair] < visible[wanted]
        chosen = np.flatnonzero(exists[0] & exists[1])
        place, ends, wanted = (values.take(chosen, 1) for values in (place, ends, wanted))
        begin = row[chosen] * len(kept) + writer[pair.take(chosen, 1)]
        old, new = begin + offsets[ends], begin + offsets[wanted]
        ids = np.arange(new.size, dtype=np.int32).reshape(new.shape)
        wanted_by[new] = ids
        contested[new[wanted_by[new] != ids]] = True
        taken = present[new] | contested[new] | (wanted_by[old] >= 0)
        wanted_by[new], contested[new] = -1, False
        free = np.flatnonzero(~(taken[0] | taken[1]))
        present[old.take(free, 1)], present[new.take(free, 1)] = False, True
        reader[place.take(free, 1)] = wanted.take(free, 1)
    return present.reshape(draws, -1)


def _matched(
    n_edges: int, draws: int, random: np.random.Generator
) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "two pair"]]:
    """Pairs of different edges, no edge twice in a draw: the draw and the numbers of both edges."""
    packed = (random.integers(2**31, size=(draws, n_edges)) << 32) | np.arange(n_edges)  # sorts faster than argsort
    packed.sort(1)
    half = n_edges // 2
    tried = random.random((draws, half)) < TRIED
    pairs = np.stack([packed[:, :half][tried], packed[:, half : 2 * half][tried]])
    return np.nonzero(tried)[0], pairs & (2**32 - 1)
