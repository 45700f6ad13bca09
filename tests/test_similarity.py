"""Similarities, chance correction, noise floor, consensus and ROC areas against hand-computed values."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch

from circuitlit.errors import UserError
from circuitlit.evaluate import consensus, edge_auc, load_reference, node_auc, noise_floor, random_circuit, similarity
from circuitlit.evaluate.ground_truth import against, roc_auc
from circuitlit.evaluate.similarity import (
    Spread,
    beyond_chance,
    chance_jaccard,
    corrected_jaccard,
    corrected_jaccards,
    inclusion,
    jaccard,
    overlap_coefficient,
    spearman,
    weighted_jaccard,
)
from circuitlit.evaluate.statistics import average_ranks, drawn_items, mean_of_others
from circuitlit.graph import Circuit, EdgeScores, Graph

GRAPH = Graph(2, 2, 1)


def kept(*edges: int, total: int = 10) -> torch.Tensor:
    mask = torch.zeros(1, total, dtype=torch.bool)
    mask[0, list(edges)] = True
    return mask


def test_set_similarities_by_hand() -> None:
    a, b = kept(0, 1, 2, 3), kept(2, 3, 4)
    assert jaccard(a, b) == 2 / 5
    assert overlap_coefficient(a, b) == 2 / 3
    assert jaccard(a, a) == overlap_coefficient(a, a) == corrected_jaccard(a, a) == 1
    assert jaccard(kept(), kept()) == corrected_jaccard(kept(), kept()) == 1
    shares = torch.tensor([0, 0.1, 0.3, 0.6, 1.1])[:, None]
    sets = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) < shares
    assert corrected_jaccards(sets) == [corrected_jaccard(one, other) for one, other in combinations(sets, 2)]
    assert jaccard(a, b) == jaccard(b, a) and corrected_jaccard(a, b) == corrected_jaccard(b, a)


def test_chance_is_the_mean_over_all_circuits() -> None:
    """All 120 circuits of 3 edges out of 10 against a fixed one of 4: E[J] by enumeration, and E[J*] = 0."""
    fixed = kept(0, 1, 2, 3)
    others = [kept(*edges) for edges in combinations(range(10), 3)]
    mean = sum(jaccard(fixed, other) for other in others) / len(others)
    assert chance_jaccard(4, 3, 10) == pytest.approx(mean, abs=1e-12)
    assert sum(corrected_jaccard(fixed, other) for other in others) == pytest.approx(0, abs=1e-9)


def test_chance_of_large_circuits_is_near_the_plug_in_value() -> None:
    overlap = 3500 * 3500 / 70_651
    assert chance_jaccard(3500, 3500, 70_651) == pytest.approx(overlap / (7000 - overlap), rel=1e-3)


def test_score_similarities_by_hand() -> None:
    a, b = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[2.0, 2.0, 0.0]])
    assert weighted_jaccard(a, b) == pytest.approx((0.25 + 0.25 + 0) / (0.5 + 0.5 + 0.5))
    assert weighted_jaccard(a, 3 * a) == pytest.approx(1)
    assert spearman(torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[1.0, 3.0, 2.0, 4.0]])) == pytest.approx(0.8)
    where = torch.tensor([[True, False, True, True]])
    assert spearman(torch.tensor([[1.0, 0.0, 2.0, 3.0]]), torch.tensor([[9.0, 99.0, 8.0, 7.0]]), where) == -1


def test_ranks_share_ties() -> None:
    assert average_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def circuits(*seeds: int, count: int = 20) -> list[Circuit]:
    made = []
    for seed in seeds:
        values = torch.randn(1, GRAPH.n_edges, generator=torch.Generator().manual_seed(seed))
        made.append(Circuit.cut(EdgeScores(GRAPH, values, "test"), count))
    return made


def test_similarity_of_a_circuit_with_itself_and_another() -> None:
    one, two = circuits(0, 1)
    assert all(value == pytest.approx(1) for value in similarity(one, one).values())
    assert similarity(one, two) == pytest.approx(similarity(two, one))
    other = Circuit.cut(EdgeScores(Graph(1, 2, 1), torch.zeros(1, Graph(1, 2, 1).n_edges), "test"), 2)
    with pytest.raises(ValueError, match="different graphs"):
        similarity(one, other)


def test_random_circuits_have_nothing_in_common_on_average() -> None:
    spread = Spread.of([random_circuit(GRAPH, 15, seed) for seed in range(24)])
    assert spread.n_circuits == 24 and len(spread.values) == 24 * 23 // 2
    assert abs(spread.mean) < 0.05
    assert spread.low < spread.median < spread.high


def test_noise_floor_resamples_the_pairs() -> None:
    seen: list[list[int]] = []
    effect = torch.randn(30, GRAPH.n_edges, generator=torch.Generator().manual_seed(0))

    def score(rows) -> EdgeScores:
        seen.append(list(rows))
        return EdgeScores(GRAPH, effect[list(rows)].mean(0, keepdim=True), "test")

    spread, made = noise_floor(score, lambda scores: Circuit.cut(scores, 12), 30, resamples=10)
    assert len(seen) == len(made) == 10 and all(len(rows) == 30 for rows in seen)
    assert len({tuple(rows) for rows in seen}) == 10 and any(len(set(rows)) < 30 for rows in seen)
    assert 0.1 < spread.mean < 0.9
    steady, _ = noise_floor(
        lambda rows: EdgeScores(GRAPH, effect[:1], "test"), lambda scores: Circuit.cut(scores, 12), 30
    )
    assert (steady.mean, steady.low) == (1.0, 1.0)


def test_consensus_counts_every_circuit() -> None:
    made = circuits(0, 1, 2, 3)
    frequency = inclusion([circuit.kept for circuit in made])
    assert float(frequency.sum()) == pytest.approx(20)
    by_hand = sum(circuit.kept.int() for circuit in made)
    for share, needed in ((0.5, 2), (0.75, 3), (1.0, 4)):
        common = consensus(made, share)
        assert torch.equal(common.kept, by_hand >= needed)
        assert torch.equal(common.scores.values, frequency)


def test_roc_area_by_hand_and_by_all_pairs() -> None:
    scores, positive = torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert roc_auc(scores, positive) == (1 + 1 + 0.5 + 1) / 4
    assert roc_auc(-scores, positive) == 0.5 / 4
    assert roc_auc(torch.ones(4), positive) == 0.5
    assert math.isnan(roc_auc(scores, torch.ones(4, dtype=torch.bool)))
    draw = torch.Generator().manual_seed(0)
    values, mask = torch.randint(0, 9, (200,), generator=draw).float(), torch.rand(200, generator=draw) < 0.3
    wins = (values[mask][:, None] > values[~mask]).double() + 0.5 * (values[mask][:, None] == values[~mask]).double()
    assert roc_auc(values, mask) == pytest.approx(float(wins.mean()))


def test_a_perfect_ranking_of_the_published_heads() -> None:
    graph = Graph(12, 12, 12)
    reference = load_reference("ioi_gpt2", graph)
    assert int(reference.nodes.sum()) == 26 and int(reference.candidates.sum()) == 144
    assert reference.edges is None and "2211.00593" in reference.source
    values = reference.nodes[graph.writer_of].float()[None]
    assert node_auc(EdgeScores(graph, values, "test"), reference.nodes, reference.candidates) == 1
    assert node_auc(EdgeScores(graph, -values, "test"), reference.nodes, reference.candidates) == 0
    assert node_auc(EdgeScores(graph, -values, "t", (), True), reference.nodes, reference.candidates) == 1
    greater = load_reference("greater_than_gpt2", graph)
    assert int(greater.nodes.sum()) == 17 and int(greater.candidates.sum()) == 156


def test_own_reference_with_edges(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    facts = {
        "source": "made up",
        "graph": {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1},
        "candidates": "heads and mlps",
        "nodes": {"all": ["a0.h1", "m1"]},
        "edges": ["input->a0.h0<v>", "a0.h1->m1", "m1->logits"],
    }
    file.write_text(json.dumps(facts))
    reference = load_reference(str(file), GRAPH)
    assert reference.edges is not None
    scores = EdgeScores(GRAPH, reference.edges.float()[None], "test")
    assert edge_auc(scores, reference.edges) == 1
    assert against(scores, reference)["edge_auc"] == 1


@pytest.mark.parametrize("name,words", [("nonsense", "choose one of"), ("ioi_gpt2", "take scores of that model")])
def test_references_that_do_not_fit(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_reference(name, GRAPH)


def test_a_reference_with_an_unknown_node(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    graph = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
    file.write_text(json.dumps({"source": "", "graph": graph, "candidates": "heads", "nodes": {"x": ["a9.h9"]}}))
    with pytest.raises(UserError, match="not a readable reference"):
        load_reference(str(file), GRAPH)


def test_overlaps_are_corrected_one_by_one_and_together_alike() -> None:
    values, expected = [0.5, 0.2, 0.7, 1.0], [0.2, 0.2, 1.0, 1.0]
    alone = [beyond_chance(value, chance) for value, chance in zip(values, expected, strict=True)]
    assert alone == pytest.approx([0.375, 0.0, 1.0, 1.0])
    together = beyond_chance(torch.tensor(values).double(), torch.tensor(expected).double())
    assert together.tolist() == pytest.approx(alone)


def test_a_mean_over_pairs_of_draws_leaves_out_an_item_with_itself() -> None:
    values = torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]], dtype=torch.float64)
    drawn = torch.tensor([[0, 1, 2], [0, 0, 1], [2, 2, 2]])
    found = mean_of_others(values, drawn)
    assert found[:2].tolist() == pytest.approx([21 / 6, (1 + 1 + 3 + 3) / 4]) and math.isnan(float(found[2]))
    assert drawn_items(5, 0)[0].tolist() == [0, 1, 2, 3, 4] and torch.equal(drawn_items(5, 1), drawn_items(5, 1))
