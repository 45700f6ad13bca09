"""Overlaps against nulls: planted pairs of circuits that share nothing, that keep their nodes, that only look so."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from circuitlit.evaluate import random_circuit
from circuitlit.evaluate.controls import shuffles
from circuitlit.evaluate.overlap import NULLS, Shared, StandIns, circuit_nodes, jaccards
from circuitlit.evaluate.similarity import jaccard
from circuitlit.evaluate.testing import with_holm
from circuitlit.graph import Graph, top_k
from circuitlit.report.overlap import finding, p_text

TINY = Graph(4, 4, 2)
SMOLLM2 = Graph(30, 9, 3)


def drawn(graph: Graph, weight: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Edges drawn without replacement, with probabilities by weight."""
    return top_k(weight.log() - (-torch.rand(graph.n_edges, generator=draw).log()).log(), count)


def uniform(graph: Graph, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two circuits that have nothing in common but their size."""
    one, other = (drawn(graph, torch.ones(graph.n_edges), count, draw) for _ in range(2))
    return one, other


def profile(graph: Graph, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two circuits that both read late, from early layers and from MLPs more than from heads."""
    depth = (graph.writer_of - graph.inputs).clamp(min=0) // graph.writers_per_layer
    mlp = (graph.writer_of - graph.inputs) % graph.writers_per_layer == graph.n_heads
    layer = graph.reader_of // graph.readers_per_layer
    weight = (2.0 * layer / graph.n_layers - 2.0 * depth / graph.n_layers).exp() * torch.where(mlp, 3.0, 1.0)
    one, other = (drawn(graph, weight, count, draw) for _ in range(2))
    return one, other


def degrees(graph: Graph, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A circuit with hubs, and one with the same degrees dealt to other heads of each layer."""
    weight = torch.randn(graph.n_writers, generator=draw).exp()[graph.writer_of]
    one = drawn(graph, weight * torch.randn(graph.n_readers, generator=draw).exp()[graph.reader_of], count, draw)
    renamed = torch.arange(graph.n_writers)
    for layer in range(graph.n_layers):
        first = graph.writers_before(layer)
        renamed[first : first + graph.n_heads] = first + torch.randperm(graph.n_heads, generator=draw)
    other = torch.zeros_like(one)
    other[graph.offsets[graph.reader_of[one]] + renamed[graph.writer_of[one]]] = True
    return one, shuffles(graph, other, 1, int(torch.randint(10**6, (), generator=draw))).masks[0]


def test_a_p_value_that_no_draws_could_make_small_says_so() -> None:
    assert p_text(0.14, 1 / 21, 20) == "0.14, 20 draws are too few"  # above all of them
    assert p_text(0.29, 2 / 21, 20) == "0.29" and p_text(0.04, 1 / 101, 100) == "0.04" and p_text(None, None, 5) == "-"


def test_few_draws_are_no_finding() -> None:
    kept = random_circuit(TINY, 40, 0)[0]
    for draws, said in ((20, "undecided: too few draws"), (100, "beyond chance")):
        one, other = (StandIns(TINY, kept, draws, seed) for seed in range(2))
        shared = with_holm(one.shared(other).figures())
        assert finding(shared.edges) == said and shared.edges.draws == draws
    one, other = (StandIns(TINY, random_circuit(TINY, 40, seed)[0], 20, seed) for seed in (1, 2))
    assert finding(with_holm(one.shared(other).figures()).edges) == "nothing beyond chance"


def false(graph: Graph, count: int, planted, repeats: int, draws: int) -> dict[str, int]:
    """How many of some pairs that share nothing are found to share nodes, to keep them, to share edges."""
    found: dict[str, int] = dict.fromkeys(("nodes", "gap", "edges"), 0)
    for repeat in range(repeats):
        pair = planted(graph, count, torch.Generator().manual_seed(repeat))
        one, other = (StandIns(graph, kept, draws, 2 * repeat + side) for side, kept in enumerate(pair))
        shared = one.shared(other)
        for name in found:
            found[name] += getattr(shared, name).p <= 0.05
    return found


@pytest.mark.parametrize("planted", [uniform, profile, degrees])
def test_unrelated_circuits_share_nothing_beyond_chance(planted) -> None:
    repeats = 24
    most = int(binom.ppf(0.999, repeats, 0.05))
    found = false(TINY, 60, planted, repeats, draws=19)
    assert all(number <= most for number in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("planted", [uniform, profile, degrees])
@pytest.mark.parametrize(("graph", "count"), [(TINY, 60), (SMOLLM2, 707)])
def test_at_most_18_of_200_unrelated_circuits_are_false(graph: Graph, count: int, planted) -> None:
    found = false(graph, count, planted, 200, draws=19)
    print(graph.n_layers, planted.__name__, found)
    assert all(number <= 18 for number in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "count"), [(TINY, 60), (SMOLLM2, 707)])
def test_edges_that_follow_from_the_degrees_are_not_beyond_chance(graph: Graph, count: int) -> None:
    """A circuit and a shuffle of it share many edges, as many as their equal degrees imply."""
    false_edges = 0
    for repeat in range(200):
        one = random_circuit(graph, count, repeat)[0]
        pair = (one, shuffles(graph, one, 1, repeat).masks[0])
        sides = [StandIns(graph, kept, 19, 2 * repeat + side) for side, kept in enumerate(pair)]
        false_edges += sides[0].edge_overlap(sides[1]).p <= 0.05
    print(graph.n_layers, false_edges)
    assert false_edges <= 18


def exchanged(graph: Graph, base: Tensor, allowed: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """A circuit with some of its edges exchanged for edges that leave the allowed nodes."""
    gone = drawn(graph, base.double() + 1e-300, int(share * int(base.sum())), draw) & base
    candidates = ~base & allowed[graph.writer_of]
    new = drawn(graph, candidates.double() + 1e-300, int(gone.sum()), draw) & candidates
    return (base & ~gone) | new


def few_nodes(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A circuit of SmolLM2's size that leaves about half of the heads alone, and its nodes."""
    nodes = torch.rand(SMOLLM2.n_writers, generator=draw) < 0.6
    return drawn(SMOLLM2, nodes[SMOLLM2.writer_of].double() + 1e-300, 2261, draw), nodes


def test_nodes_that_stay_while_edges_change_are_found() -> None:
    draw = torch.Generator().manual_seed(0)
    base, nodes = few_nodes(draw)
    sides = [StandIns(SMOLLM2, kept) for kept in (base, exchanged(SMOLLM2, base, nodes, 0.5, draw))]
    gap = sides[0].shared(sides[1]).gap
    assert jaccard(base, sides[1].kept) < 0.4 and gap.p == 1 / 200 and gap.corrected > 0.5


def test_nodes_that_only_look_stable_are_not_found() -> None:
    """Half of the edges are exchanged for any others: most nodes are shared, and no more than that implies."""
    draw = torch.Generator().manual_seed(0)
    base = random_circuit(SMOLLM2, 2261, 0)[0]
    every = torch.ones(SMOLLM2.n_writers, dtype=torch.bool)
    sides = [StandIns(SMOLLM2, kept) for kept in (base, exchanged(SMOLLM2, base, every, 0.5, draw))]
    gap = sides[0].shared(sides[1]).gap
    assert gap.jaccard > 0.9 and gap.p > 0.05 and abs(gap.corrected) < 0.3


def test_a_circuit_with_itself_says_nothing_of_the_gap() -> None:
    one = StandIns(TINY, random_circuit(TINY, 60, 0)[0], 39)
    shared = one.shared(one)
    nodes, edges, gap = shared.nodes, shared.edges, shared.gap
    assert nodes.jaccard == nodes.corrected == edges.jaccard == edges.corrected == 1
    assert edges.p == 1 / 40
    assert gap.p == 1 and all(chance.expected == 1 for chance in gap.chance.values())


def test_overlaps_are_symmetric_and_what_chance_gives_is_what_chance_gives() -> None:
    one, other = (StandIns(TINY, random_circuit(TINY, 60, seed)[0], 999, seed) for seed in (0, 1))
    ours, theirs = one.shared(other), other.shared(one)
    for name in ("nodes", "edges", "gap"):
        own, their = getattr(ours, name), getattr(theirs, name)
        assert own.jaccard == their.jaccard and own.p == pytest.approx(their.p, abs=0.05)
        assert own.corrected == pytest.approx(their.corrected, abs=0.02)
    total, drawn_edges = TINY.n_edges, torch.stack([random_circuit(TINY, 60, seed)[0] for seed in range(2000)])
    values = jaccards(one.kept[None], drawn_edges)[0]
    found, uniform_null = ours.edges.jaccard, ours.edges.chance["uniform"]
    assert total == drawn_edges.shape[1] and uniform_null.expected == pytest.approx(float(values.mean()), abs=0.005)
    assert uniform_null.p == pytest.approx(float((values >= found).double().mean()), abs=0.05)


def test_the_mean_of_several_pairs_is_tested_as_one() -> None:
    circuits = [StandIns(TINY, random_circuit(TINY, 60, seed)[0], 39, seed) for seed in range(3)]
    first, second = circuits[0].shared(circuits[1]), circuits[1].shared(circuits[2])
    both, same = Shared.mean([first, second]), Shared.mean([first, first, first])
    assert both.nodes.jaccard == pytest.approx((first.nodes.jaccard + second.nodes.jaccard) / 2)
    ways = (first.gap.chance["blocks"].drawn[1] + second.gap.chance["blocks"].drawn[1]) / 2
    assert torch.equal(both.gap.chance["blocks"].drawn[1], ways)
    assert {n: part["rank_p"] for n, part in same.to_dict().items()} == {
        n: part["rank_p"] for n, part in first.to_dict().items()
    }


def test_nodes_and_what_stand_ins_keep() -> None:
    graph, kept = TINY, random_circuit(TINY, 60, 0)[0]
    names = {graph.edge_name(int(edge)).split("->")[0] for edge in kept.nonzero()} - {"input"}
    nodes = circuit_nodes(graph, kept[None])[0]
    assert {graph.nodes[int(node)] for node in nodes.nonzero()} == names
    dense = StandIns(graph, torch.ones(graph.n_edges, dtype=torch.bool), 3)
    assert all(bool(dense.random_nodes[null].all()) for null in NULLS)
    with_empty = StandIns(graph, kept, 19).shared(StandIns(graph, torch.zeros_like(kept), 19, 1))
    assert with_empty.nodes.jaccard == with_empty.edges.jaccard == 0
    assert all(part["rank_p"] == 1 for part in with_empty.to_dict().values())
