"""Circuits that know nothing, to compare with: random ones, and shuffles that keep every node's number of edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.graph import Graph

TRIED = 0.9  # share of the matched pairs that a round tries to swap; below 1, so that any swap can happen alone
AT_ONCE = 2**26  # edges of all draws that are drawn together
BLOCK = 16  # draws of a large graph that are swapped together
SMALL = 2**16  # edges of all draws of a small one, whose rounds are too short for blocks of 16


def random_circuit(graph: Graph, count: int, seed: int, copies: int = 1) -> Bool[Tensor, "copies edge"]:
    """`count` edges drawn uniformly, from all rows where token roles have rows of their own."""
    order = torch.randperm(copies * graph.n_edges, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(copies * graph.n_edges, dtype=torch.bool)
    kept[order[:count]] = True
    return kept.view(copies, graph.n_edges)


@dataclass(frozen=True)
class EdgeSets:
    """Random sets of edges of one size, as lists: far less memory and time than masks over all edges take.

    Attributes:
        listed: edges of each set, in no order.
        absent: edges that are in a set where they are not listed; of most sets there are none.
    """

    listed: Int[Tensor, "draw k"]
    absent: Bool[Tensor, "edge"]

    @property
    def masks(self) -> Bool[Tensor, "draw edge"]:
        """The sets as masks."""
        rows = torch.arange(len(self.listed))[:, None]
        listed = torch.zeros(len(self.listed), len(self.absent), dtype=torch.bool)
        listed[rows, self.listed.long()] = True
        return listed ^ self.absent

    def jaccards(self, sets: Bool[Tensor, "one edge"]) -> Float[Tensor, "one draw"]:
        """Jaccard index of every one of some sets of edges with every one of these."""
        draws, k = self.listed.shape
        signs = 1 - 2 * self.absent.float()
        size = int(self.absent.sum() + signs[self.listed[0].long()].sum())
        begins = torch.arange(draws, dtype=torch.int32) * k
        listed = F.embedding_bag(self.listed.flatten(), (sets * signs).T.contiguous(), begins, mode="sum")  # exact
        return jaccard_of(listed.T.contiguous() + (sets & self.absent).sum(1)[:, None], sets.sum(1)[:, None], size)

    def writers(self, graph: Graph) -> Bool[Tensor, "draw writer"]:
        """Writers that any edge leaves."""
        writer_of = graph.writer_of.numpy()
        place = writer_of.astype(np.int32).take(self.listed.numpy())
        place += np.arange(len(place), dtype=np.int32)[:, None] * graph.n_writers
        found = np.zeros((len(place), graph.n_writers), dtype=bool)
        if bool(self.absent.any()):
            signs = (1 - 2 * self.absent.numpy().astype(float)).take(self.listed.numpy())
            counts = np.bincount(place.ravel(), signs.ravel(), found.size).reshape(found.shape)
            found = counts + np.bincount(writer_of[self.absent.numpy()], minlength=graph.n_writers) > 0
        else:
            found.reshape(-1)[place] = True
        return torch.from_numpy(found)


def jaccard_of(shared: Tensor, ours: Tensor | int, theirs: Tensor | int) -> Float[Tensor, "*some"]:
    """Jaccard index from the items that two sets share and from their sizes; 1 of two empty sets."""
    union = ours + theirs - shared
    return torch.where(union > 0, shared.double() / union, 1.0)


def redrawn(kept: Bool[Tensor, "edge"], labels: Int[Tensor, "edge"], draws: int, seed: int) -> EdgeSets:
    """Random sets of edges, each with as many edges under every label as `kept` has."""
    random = np.random.default_rng(seed)
    some = max(1, AT_ONCE // len(kept))
    own = labels.numpy()
    sizes, counts = np.bincount(own), np.bincount(own[kept.numpy()], minlength=int(own.max()) + 1)
    few = np.minimum(counts, sizes - counts)  # where a label keeps more than half, the absent edges are drawn instead
    order = np.argsort(own.astype(np.min_scalar_type(len(sizes))), kind="stable").astype(np.int32)
    parts = [_redrawn(order, sizes, few, min(some, draws - done), random) for done in range(0, draws, some)]
    return EdgeSets(torch.from_numpy(np.concatenate(parts)), torch.from_numpy((counts > sizes / 2)[own]))


def _redrawn(
    order: Int[np.ndarray, "edge"],
    sizes: Int[np.ndarray, "label"],
    few: Int[np.ndarray, "label"],
    draws: int,
    random: np.random.Generator,
) -> Int[np.ndarray, "draw k"]:
    """Some of them at once.

    Places in `order`, which goes by label, are drawn with replacement and those that hit a taken one again, which is
    drawing without replacement. Sorted places show what was hit twice.
    """
    starts, label = sizes.cumsum() - sizes, np.repeat(np.arange(len(sizes)), few)
    first = np.arange(draws, dtype=np.int32)[:, None] * len(order)
    place = random.random((draws, len(label)))
    place *= sizes[label]
    place = place.astype(np.int32)
    place += starts[label].astype(np.int32)
    place += first
    place.sort(1)
    every = place.reshape(-1)
    again = np.flatnonzero(every[1:] == every[:-1]) + 1
    taken = np.zeros(draws * len(order) if len(again) else 0, dtype=bool)
    taken[every[: len(taken)]] = True
    of_place = np.repeat(np.arange(len(sizes)), sizes)
    while len(again):
        row, old = np.divmod(every[again], len(order))
        own = of_place[old]
        new = row * len(order) + starts[own] + (random.random(len(own)) * sizes[own]).astype(np.int64)
        new.sort()
        hit = taken[new]
        hit[1:] |= new[1:] == new[:-1]
        taken[new] = True
        every[again] = new
        again = again[hit]
    place -= first
    return order.take(place)


def shuffled_circuit(graph: Graph, kept: Bool[Tensor, "copies edge"], seed: int) -> Bool[Tensor, "copies edge"]:
    """A random circuit in which every writer and every reader has as many edges as in `kept`, row by row."""
    return shuffled_circuits(graph, kept, 1, seed)[0]


def shuffled_circuits(
    graph: Graph, kept: Bool[Tensor, "copies edge"], draws: int, seed: int
) -> Bool[Tensor, "draw copies edge"]:
    """Random circuits in which every writer and every reader has as many edges as in `kept`, row by row."""
    seeds = np.random.SeedSequence(seed).generate_state(len(kept)).tolist()
    return torch.stack([shuffles(graph, row, draws, own).masks for row, own in zip(kept, seeds, strict=True)], 1)


def shuffles(graph: Graph, kept: Bool[Tensor, "edge"], draws: int, seed: int) -> EdgeSets:
    """Random circuits in which every writer and every reader has as many edges as in `kept`.

    Edges are rewired by double swaps (u->v, x->y become u->y, x->v) wherever both new edges exist in the graph and are
    not in the circuit yet. One chain of swaps leads from the circuit to a start from which as many swaps lead to every
    draw: a circuit that is random itself cannot be told from its draws, whether or not the chains are long enough.

    Source: Maslov and Sneppen, Science 296 (2002), swaps; Besag and Clifford, Biometrika 76 (1989), the common start.
    """
    random = np.random.default_rng(seed)
    start = _swapped(graph, np.flatnonzero(kept.numpy()), 1, random)[0]
    start.sort()
    some = max(1, AT_ONCE // graph.n_edges)
    parts = [_swapped(graph, start, min(some, draws - done), random) for done in range(0, draws, some)]
    return EdgeSets(torch.from_numpy(np.concatenate(parts)), torch.zeros(graph.n_edges, dtype=torch.bool))


def _swapped(
    graph: Graph, edges: Int[np.ndarray, "k"], draws: int, random: np.random.Generator
) -> Int[np.ndarray, "draw k"]:
    """Chains of swaps from one circuit.

    Each round matches a draw's edges at random and swaps all matched pairs at once that stand in no other pair's way:
    neither by wanting the same edge nor by wanting one that another pair gives up. So a round and its reverse are
    equally probable, and all circuits of equal degrees are equally probable in the end. In small graphs most pairs
    stand in each other's way, which takes more rounds.
    """
    writer, offsets = graph.writer_of.numpy()[edges], graph.offsets.numpy()
    reader = np.tile(graph.reader_of.numpy()[edges].astype(np.int32), (draws, 1))
    block = min(draws, max(BLOCK, SMALL // graph.n_edges))
    visible, scratch = graph.visible.numpy(), _Scratch.of(block * graph.n_edges)
    half = len(edges) // 2
    for _ in range(20 + 4000 // max(10, len(edges))):
        keys = random.integers(2**31, size=reader.shape)
        tried = random.random((draws, half)) < TRIED
        for begin in range(0, draws, block):  # few draws at a time stay in the processor's cache
            rows = slice(begin, begin + block)
            _swap(graph.n_edges, (writer, visible, offsets), reader[rows], _matched(keys[rows], tried[rows]), scratch)
    return (writer + offsets[reader]).astype(np.int32)


@dataclass(frozen=True)
class _Scratch:
    """Of some edges of several draws, what `_swap` leaves as it was.

    Attributes:
        present: whether they are there; False.
        wanted_by: number of the swap that wants or gives them; -1.
        contested: whether several swaps want them; False.
    """

    present: Bool[np.ndarray, "edge"]
    wanted_by: Int[np.ndarray, "edge"]
    contested: Bool[np.ndarray, "edge"]

    @classmethod
    def of(cls, size: int) -> _Scratch:
        return cls(np.zeros(size, dtype=bool), np.full(size, -1, dtype=np.int32), np.zeros(size, dtype=bool))


def _swap(
    n_edges: int,
    ends_of: tuple[Int[np.ndarray, "k"], Int[np.ndarray, "reader"], Int[np.ndarray, "reader"]],
    reader: Int[np.ndarray, "draw k"],
    matched: tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "two pair"]],
    scratch: _Scratch,
) -> None:
    """A round of swaps for some draws: changes the readers of their edges.

    Args:
        n_edges: of the graph.
        ends_of: writers of the edges; of each reader, how many writers it sees and the number of its first edge.
        reader: of each edge.
        matched: see `_matched`.
        scratch: is left as it was.
    """
    writer, visible, offsets = ends_of
    row, pair = matched
    present, wanted_by, contested = scratch.present, scratch.wanted_by, scratch.contested
    there = offsets.take(reader)
    there += writer
    there += np.arange(len(reader))[:, None] * n_edges
    present[there] = True
    flat = reader.reshape(-1)
    place, writes = row * reader.shape[1] + pair, writer.take(pair)
    ends = flat.take(place)
    exists = writes < visible.take(ends[::-1])
    chosen = np.flatnonzero(exists[0] & exists[1])
    place, ends = place.take(chosen, 1), ends.take(chosen, 1)
    wanted = ends[::-1]
    begin = row.take(chosen) * n_edges + writes.take(chosen, 1)
    old, new = begin + offsets.take(ends), begin + offsets.take(wanted)
    ids = np.arange(new.size, dtype=np.int32).reshape(new.shape)
    wanted_by[new] = ids
    contested[new[wanted_by.take(new) != ids]] = True
    taken = present.take(new) | contested.take(new) | (wanted_by.take(old) >= 0)
    wanted_by[new], contested[new], present[there] = -1, False, False
    free = np.flatnonzero(~(taken[0] | taken[1]))
    flat[place.take(free, 1)] = wanted.take(free, 1)


def _matched(
    keys: Int[np.ndarray, "draw k"], tried: Bool[np.ndarray, "draw half"]
) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "two pair"]]:
    """Pairs of different edges, no edge twice in a draw: the draw and the numbers of both edges."""
    half = tried.shape[1]
    packed = (keys << 32) | np.arange(keys.shape[1])  # sorts faster than argsort
    packed.sort(1)
    packed &= 2**32 - 1
    return np.nonzero(tried)[0], np.stack([packed[:, :half][tried], packed[:, half : 2 * half][tried]])
