"""Graphs with two inputs (Tracr): tokens and positions are writers, but no nodes, wherever nodes are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuitlit.compare.effects import without_nodes
from circuitlit.evaluate.matched import matched_nodes
from circuitlit.graph import Circuit, EdgeScores, Graph, export_circuit, load_circuit
from circuitlit.heads import heads_in_circuit
from circuitlit.heads.effects import Effects, head_writers
from circuitlit.heads.greater_than import heads_into_mlps, mlps_to_logits
from circuitlit.model.prune import cut_nodes
from circuitlit.report.edges import ranked_edges

NAMES = ["input->a0.h0<v>", "a0.h0->m1", "m1->logits", "pos->a0.h1<v>", "a0.h1->a1.h1<q>", "a1.h1->logits"]


def hand_circuit(inputs: int = 2, coupled: bool = False) -> Circuit:
    graph = Graph(2, 2, 2, inputs=inputs, coupled=coupled)
    kept = torch.zeros(1, graph.n_edges)
    names = [name for name in NAMES if inputs == 2 or not name.startswith("pos")]
    kept[0, [graph.edge_index(name) for name in names]] = 1
    return Circuit.cut(EdgeScores(graph, kept, "hand"), len(names))


def test_nodes_are_heads_and_mlps() -> None:
    graph = Graph(2, 2, 1, inputs=2)
    assert graph.nodes == ["a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert [graph.place(writer) for writer in range(6)] == [None, None, (0, 0), (0, 1), (0, None), (1, 0)]
    assert graph.by_head(torch.arange(graph.n_writers)).tolist() == [[2, 3], [5, 6]]
    assert head_writers(graph) == [2, 3, 5, 6]


def test_nodes_of_a_circuit_with_two_inputs() -> None:
    circuit = hand_circuit()
    graph = circuit.graph
    assert circuit.n_reachable == len(NAMES)
    assert circuit.nodes() == ["a0.h0", "a0.h1", "a1.h1", "m1"]
    assert heads_in_circuit(circuit).tolist() == [[True, True], [False, True]]
    assert mlps_to_logits(circuit) == [1] and heads_into_mlps(circuit, [1]) == [(0, 0)]
    assert cut_nodes(graph, circuit.reachable) == ["m0", "a1.h0"]
    cut = without_nodes(graph, ["a0.h0"])
    assert {graph.edge_name(int(edge)).split("->")[0] for edge in (~cut[0]).nonzero()} == {"a0.h0"}
    assert all(set(nodes) <= set(graph.nodes) for nodes in matched_nodes(graph, ["a0.h0", "m1"], 5))
    layers = {edge.name: edge.source_layer for edge in ranked_edges(circuit)}
    assert layers["pos->a0.h1<v>"] == layers["input->a0.h0<v>"] == -1 and layers["m1->logits"] == 1


def test_effects_of_heads_land_on_their_heads() -> None:
    graph = Graph(2, 2, 2, inputs=2)
    effects = Effects((2, 6), torch.tensor([[1.0], [2.0]]), torch.ones(1), torch.zeros(1).long())
    assert effects.grid(graph).nan_to_num(0).tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize("format,file", [("mib_json", "c.json"), ("mib_pt", "c.pt"), ("eap_ig_json", "e.json")])
@pytest.mark.parametrize("inputs,coupled", [(2, False), (1, True)])
def test_files_bring_back_inputs_and_coupling(
    inputs: int, coupled: bool, format: str, file: str, tmp_path: Path
) -> None:
    circuit = hand_circuit(inputs, coupled)
    export_circuit(circuit, tmp_path / file, format, d_model=8)  # type: ignore[arg-type]
    again = load_circuit(tmp_path / file, circuit.graph)
    assert again.graph == circuit.graph and torch.equal(again.kept, circuit.kept)
    assert load_circuit(tmp_path / file).graph == circuit.graph
