"""Names, order, selection and files of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from circuitlit.errors import UserError
from circuitlit.evaluate import random_circuit, shuffled_circuit
from circuitlit.graph import Circuit, EdgeScores, Graph, MaskLayout, reachable_edges, top_k
from circuitlit.graph.select import edge_budget


def test_names_of_a_small_grouped_graph() -> None:
    graph = Graph(2, 2, 1)
    assert graph.writers == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert graph.readers[:5] == ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h0<v>", "m0"]
    assert graph.readers[-1] == "logits"
    assert [graph.edge_name(edge) for edge in range(7)] == [
        "input->a0.h0<q>",
        "input->a0.h1<q>",
        "input->a0.h0<k>",
        "input->a0.h0<v>",
        "input->m0",
        "a0.h0->m0",
        "a0.h1->m0",
    ]
    assert graph.edge_name(graph.n_edges - 1) == "m1->logits"


@pytest.mark.parametrize("parallel", [False, True])
def test_every_name_leads_back(parallel: bool) -> None:
    graph = Graph(3, 4, 2, parallel)
    names = [graph.edge_name(edge) for edge in range(graph.n_edges)]
    assert len(set(names)) == graph.n_edges
    assert [graph.edge_index(name) for name in names] == list(range(graph.n_edges))
    assert ("a1.h0->m1" in names) is not parallel


@pytest.mark.parametrize("name", ["m1->m0", "a0.h0->a0.h1<q>", "nobody->logits", "input", "a0.h9->logits"])
def test_edges_that_do_not_exist(name: str) -> None:
    with pytest.raises(KeyError, match="no edge"):
        Graph(2, 2, 2).edge_index(name)


def test_dense_layout_holds_every_mask_once() -> None:
    layout = MaskLayout(Graph(2, 2, 1), roles=("other", "end"))
    flat = torch.arange(1.0, layout.size + 1)
    dense = layout.dense(flat)
    assert dense.shape == (2, layout.graph.n_readers, layout.graph.n_writers)
    assert sorted(dense[dense > 0].tolist()) == flat.tolist()
    reader, writer = layout.graph.readers.index("m1"), layout.graph.writers.index("a0.h1")
    assert dense[0, reader, writer] == flat[layout.graph.edge_index("a0.h1->m1")]


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95, 0.966, 0.999])
def test_counts_are_exact(sparsity: float) -> None:
    graph = Graph(5, 4, 2)
    values = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(0)).round()  # many ties
    circuit = Circuit.cut(EdgeScores(graph, values, "test"), edge_budget(sparsity, graph.n_edges))
    assert circuit.n_edges == max(1, round((1 - sparsity) * graph.n_edges))
    assert float(values[circuit.kept].min()) >= float(values[~circuit.kept].max())


def test_ties_go_to_the_earlier_edge() -> None:
    assert top_k(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), 3)[0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, 95.0])
def test_budget_refuses_what_is_no_share(sparsity: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        edge_budget(sparsity, 100)


def test_reachability_on_a_planted_path() -> None:
    graph = Graph(2, 2, 1)
    path = ["input->a0.h0<v>", "a0.h1->m1", "m1->logits"]  # the value reader feeds both heads of its group
    dead_ends = ["input->a1.h0<q>", "a0.h0->a1.h0<k>"]  # head 1.0 never reaches the logits
    from_nowhere = ["m0->logits"]  # nothing reaches m0
    kept = torch.zeros(1, graph.n_edges, dtype=torch.bool)
    for name in path + dead_ends + from_nowhere:
        kept[0, graph.edge_index(name)] = True
    reachable = reachable_edges(graph, kept)
    assert {graph.edge_name(int(edge)) for edge in reachable[0].nonzero()} == set(path)


def test_scores_refuse_what_is_not_finite_or_does_not_fit() -> None:
    graph = Graph(1, 1, 1)
    with pytest.raises(UserError, match="not finite"):
        EdgeScores(graph, torch.full((1, graph.n_edges), torch.nan), "test")
    with pytest.raises(ValueError, match="shape"):
        EdgeScores(graph, torch.zeros(1, graph.n_edges + 1), "test")


@pytest.mark.parametrize("select", ["top_k", "greedy"])
def test_a_number_of_edges_that_no_circuit_has(select: Any) -> None:
    scores = EdgeScores(Graph(1, 1, 1), torch.zeros(1, Graph(1, 1, 1).n_edges), "test")
    for count in (-3, scores.size + 1):
        with pytest.raises(UserError, match=f"count={count} is not a number of edges from 0 to {scores.size}"):
            Circuit.cut(scores, count, select=select)
    assert Circuit.cut(scores, scores.size, select=select).sparsity == 0


def test_circuit_survives_its_file(tmp_path: Path) -> None:
    graph = Graph(3, 4, 2)
    scores = EdgeScores(graph, torch.randn(2, graph.n_edges), "test", ("other", "end"), True, {"steps": 3})
    circuit = Circuit.cut(scores, 40, {"model": {"name": "tiny"}, "seed": 1})
    circuit.save(tmp_path)
    loaded = Circuit.load(tmp_path)
    assert loaded.graph == graph
    assert loaded.provenance == circuit.provenance
    assert loaded.scores.details == {"steps": 3}
    for name in ("kept", "reachable"):
        assert torch.equal(getattr(loaded, name), getattr(circuit, name))
    assert torch.equal(loaded.scores.values, scores.values)
    assert Circuit.cut(loaded.scores, 40).edges() == circuit.edges()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["circuit.json", "circuit.safetensors"]


def test_a_circuit_is_saved_into_a_new_folder_named_as_a_text(tmp_path: Path) -> None:
    graph = Graph(2, 2, 2)
    circuit = Circuit.cut(EdgeScores(graph, torch.rand(1, graph.n_edges), "test"), 5)
    circuit.save(f"{tmp_path}/new/folder")
    assert Circuit.load(f"{tmp_path}/new/folder").edges() == circuit.edges()


def test_a_damaged_circuit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circuit.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable circuit"):
        Circuit.load(tmp_path)
    with pytest.raises(UserError, match="not a readable circuit"):
        Circuit.load(tmp_path / "missing.safetensors")


def test_random_circuits_have_their_size_and_differ() -> None:
    graph = Graph(4, 4, 2)
    first, second = (random_circuit(graph, 30, seed) for seed in (0, 1))
    assert int(first.sum()) == int(second.sum()) == 30
    assert not torch.equal(first, second)


def test_controls_of_masks_by_role() -> None:
    graph = Graph(4, 4, 2)
    kept = random_circuit(graph, 90, 0, copies=3)
    assert kept.shape == (3, graph.n_edges) and int(kept.sum()) == 90
    shuffled = shuffled_circuit(graph, kept, 1)
    assert torch.equal(shuffled.sum(1), kept.sum(1)) and not torch.equal(shuffled, kept)
