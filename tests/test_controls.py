"""Random sets and shuffles: exact counts and degrees, every possibility equally probable, fast enough for hundreds."""

from __future__ import annotations

import time
from itertools import combinations

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from circuitlit.evaluate import random_circuit, shuffled_circuit
from circuitlit.evaluate.controls import redrawn, shuffled_circuits, shuffles
from circuitlit.evaluate.overlap import circuit_nodes, jaccards
from circuitlit.graph import Graph

SMOLLM2 = Graph(30, 9, 3)


def degrees(graph: Graph, kept: Tensor) -> list[list[int]]:
    """Edges out of every writer and into every reader."""
    return [
        torch.bincount(end[kept], minlength=number).tolist()
        for end, number in ((graph.writer_of, graph.n_writers), (graph.reader_of, graph.n_readers))
    ]


def found(draws: Tensor) -> list[int]:
    """How often each different set was drawn."""
    return draws.unique(dim=0, return_counts=True)[1].tolist()


def test_redrawn_sets_keep_the_count_under_every_label() -> None:
    kept, labels = torch.rand(500) < 0.4, torch.arange(500) % 7
    kept[labels == 3] = True
    kept[labels == 5] = False
    draws = redrawn(kept, labels, 50, 0).masks
    counts = torch.stack([draws[:, labels == label].sum(1) for label in range(7)], 1)
    assert torch.equal(counts, torch.bincount(labels[kept], minlength=7).expand(50, -1))
    assert len(found(draws)) == 50
    assert torch.equal(draws, redrawn(kept, labels, 50, 0).masks)
    assert not torch.equal(draws, redrawn(kept, labels, 50, 1).masks)


@pytest.mark.parametrize("count", [0, 4, 200, 343])
def test_lists_say_what_masks_say(count: int) -> None:
    graph, other = Graph(4, 4, 2), random_circuit(Graph(4, 4, 2), 90, 1)[0]
    kept = random_circuit(graph, count, 0)[0]
    sets, masks = torch.stack([kept, other]), (draws := redrawn(kept, torch.arange(343) % 3, 9, 0)).masks
    assert torch.equal(draws.jaccards(sets), jaccards(sets, masks))
    assert torch.equal(draws.writers(graph)[:, graph.inputs :], circuit_nodes(graph, masks))


@pytest.mark.parametrize("count", [2, 5])
def test_every_set_is_drawn_equally_often(count: int) -> None:
    """Sparse ones, and dense ones, of which the absent edges are drawn: 7 over 2 sets, 21 of them."""
    kept = torch.arange(7) < count
    times = found(redrawn(kept, torch.zeros(7, dtype=torch.long), 21 * 200, 0).masks)
    assert len(times) == len(list(combinations(range(7), count))) == 21
    assert chisquare(times).pvalue > 0.001


def equal_degrees(graph: Graph, kept: Tensor) -> int:
    """How many circuits have the degrees of a given one, by choosing the writers of one reader after the other."""
    out, into = degrees(graph, kept)

    def choices(reader: int, left: tuple[int, ...]) -> int:
        if reader == graph.n_readers:
            return int(not any(left))
        chosen = combinations([w for w in range(int(graph.visible[reader])) if left[w]], into[reader])
        return sum(choices(reader + 1, tuple(n - (w in own) for w, n in enumerate(left))) for own in chosen)

    return choices(0, tuple(out))


def test_every_circuit_of_equal_degrees_is_drawn_equally_often() -> None:
    graph = Graph(2, 1, 1)
    kept = random_circuit(graph, 13, 2)[0]
    times = found(shuffles(graph, kept, 3000, 0).masks)
    assert len(times) == equal_degrees(graph, kept) > 20
    assert chisquare(times).pvalue > 0.001


def test_hundreds_of_shuffles_keep_every_degree_within_seconds() -> None:
    kept = random_circuit(SMOLLM2, 3500, 0)[0]
    start = time.process_time()
    draws = shuffles(SMOLLM2, kept, 20, 0).masks
    assert 10 * (time.process_time() - start) < 10  # seconds for 200; a Python loop over the edges takes 30
    assert all(degrees(SMOLLM2, draw) == degrees(SMOLLM2, kept) for draw in draws)
    share = (draws & kept).sum(1) / 3500
    assert float(share.max()) < 0.1  # 0.06 is what degrees imply; fewer swaps would leave more in place


def test_one_shuffle_keeps_the_degrees_of_every_row() -> None:
    graph = Graph(4, 4, 2)
    kept = random_circuit(graph, 90, 0, copies=3)
    shuffled = shuffled_circuit(graph, kept, 1)
    assert [degrees(graph, row) for row in kept] == [degrees(graph, row) for row in shuffled]
    assert not any(torch.equal(*rows) for rows in zip(kept, shuffled, strict=True))
    assert torch.equal(shuffled, shuffled_circuit(graph, kept, 1))
    assert not torch.equal(shuffled, shuffled_circuit(graph, kept, 2))
    several = shuffled_circuits(graph, kept, 3, 1)
    assert all([degrees(graph, row) for row in circuit] == [degrees(graph, row) for row in kept] for circuit in several)
    assert len(several.unique(dim=0)) == 3


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_edges_to_swap_stay(count: int) -> None:
    graph = Graph(2, 2, 1)
    kept = random_circuit(graph, count, 0)[0]
    assert torch.equal(shuffles(graph, kept, 3, 0).masks, kept.expand(3, -1))
