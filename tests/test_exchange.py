"""Greedy selection on a graph drawn by hand, and the file formats of other tools: round trips and a file of theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, Graph, export_circuit, greedy, load_circuit

GROUPED = Graph(3, 6, 2)  # three query heads a key/value head: thirds, which float32 cannot hold
SUFFIX = {"mib_json": "json", "eap_ig_json": "json", "mib_pt": "pt"}


def scored(graph: Graph, **values: float) -> torch.Tensor:
    row = torch.zeros(1, graph.n_edges)
    for name, value in values.items():
        row[0, graph.edge_index(name)] = value
    return row


def names(graph: Graph, kept: torch.Tensor) -> set[str]:
    return {graph.edge_name(int(edge)) for edge in kept.any(0).nonzero()}


def test_greedy_grows_from_the_logits() -> None:
    """The best edge of all, input->a0.h0<q>, waits until its head has joined through a1.h1."""
    graph = Graph(2, 2, 1)
    edges = {
        "input->a0.h0<q>": 10.0,
        "a0.h0->a1.h0<k>": 9.0,  # the k reader of the group: opened by a1.h1
        "a1.h1->logits": 5.0,
        "input->m0": 8.0,  # m0 joins with nothing that is kept
        "input->logits": 1.0,
    }
    importance = scored(graph, **edges)
    order = ["a1.h1->logits", "a0.h0->a1.h0<k>", "input->a0.h0<q>", "input->logits"]
    for count in range(1, 5):
        assert names(graph, greedy(graph, importance, count)) == set(order[:count])


@pytest.mark.parametrize("copies", [1, 3])
def test_greedy_keeps_exactly_as_many_and_all_lead_to_the_logits(copies: int) -> None:
    draw = torch.Generator().manual_seed(0)
    importance = torch.randn(copies, GROUPED.n_edges, generator=draw).round()  # many ties
    roles = tuple("abc"[:copies]) if copies > 1 else ()
    scores = EdgeScores(GROUPED, importance, "test", roles)
    for count in (0, 1, 7, 60, copies * GROUPED.n_edges):
        circuit = Circuit.cut(scores, count, select="greedy")
        assert circuit.n_edges == count
        writers_heard = {GROUPED.writers[int(GROUPED.writer_of[e])] for e in circuit.kept.any(0).nonzero()}
        fed = {w for w in range(GROUPED.n_writers) if GROUPED.writers[w] in writers_heard}
        for edge in circuit.kept.any(0).nonzero()[:, 0].tolist():
            own = GROUPED.writers_of_reader[int(GROUPED.reader_of[edge])]
            assert not len(own) or fed & set(own), GROUPED.edge_name(edge)
    assert torch.equal(greedy(GROUPED, importance, 40), greedy(GROUPED, importance, 40))


def test_greedy_is_the_naive_loop() -> None:
    graph = Graph(2, 4, 2)
    importance = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(1))
    inside, kept = {"logits"}, set()
    for _ in range(30):
        frontier = [
            (float(importance[0, edge]), -edge)
            for edge in range(graph.n_edges)
            if edge not in kept
            and (
                int(graph.reader_of[edge]) == graph.n_readers - 1
                or inside & {graph.writers[w] for w in graph.writers_of_reader[int(graph.reader_of[edge])]}
            )
        ]
        best = -max(frontier)[1]
        kept.add(best)
        inside.add(graph.writers[int(graph.writer_of[best])])
    assert set(greedy(graph, importance, 30)[0].nonzero()[:, 0].tolist()) == kept


def circuit_of(graph: Graph, magnitude: bool, select: str = "top_k") -> Circuit:
    values = torch.randn(1, graph.n_edges, generator=torch.Generator().manual_seed(0))
    scores = EdgeScores(graph, values, "test", (), magnitude, {"steps": 5})
    return Circuit.cut(scores, min(50, graph.n_edges), {"model": {"name": "tiny"}}, select)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("graph", [GROUPED, Graph(2, 2, 2, True)], ids=["grouped", "parallel"])
def test_round_trips_are_exact(graph: Graph, magnitude: bool, format, tmp_path: Path) -> None:
    circuit = circuit_of(graph, magnitude)
    file = tmp_path / f"x.{SUFFIX[format]}"
    export_circuit(circuit, file, format, 24)
    for model in (None, graph):
        back = load_circuit(file, model)
        assert back.graph == graph and back.provenance == circuit.provenance
        assert torch.equal(back.scores.values, circuit.scores.values)
        assert torch.equal(back.kept, circuit.kept) and torch.equal(back.reachable, circuit.reachable)
        assert replace(back.scores, values=circuit.scores.values) == circuit.scores
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_layout_of_the_files(tmp_path: Path) -> None:
    """Indices by the formulas of the format, for a head of the second group."""
    circuit = circuit_of(GROUPED, True)
    export_circuit(circuit, tmp_path / "x.pt", "mib_pt", 24)
    export_circuit(circuit, tmp_path / "x.json", "mib_json", 24)
    pt = torch.load(tmp_path / "x.pt", weights_only=True)
    text = json.loads((tmp_path / "x.json").read_text())
    heads, layers = 6, 3
    assert text["cfg"] == pt["cfg"] == {"n_layers": 3, "n_heads": 6, "parallel_attn_mlp": False, "d_model": 24}
    assert pt["edges_scores"].shape == (1 + layers * (heads + 1), layers * (3 * heads + 1) + 1)
    writer, reader = 1 + 0 * (heads + 1) + 4, 2 * (3 * heads + 1) + 1 * heads + 5  # a0.h4 -> a2.h5<k>
    assert (pt["src_nodes"][writer], pt["dst_nodes"][reader]) == ("a0.h4", "a2.h5<k>")
    edge = GROUPED.edge_index("a0.h4->a2.h1<k>")
    share = float(circuit.scores.values[0, edge]) / 3
    assert float(pt["edges_scores"][writer, reader]) == text["edges"]["a0.h4->a2.h5<k>"]["score"] == share
    assert bool(pt["edges_in_graph"][writer, reader]) == text["edges"]["a0.h4->a2.h5<k>"]["in_graph"]
    assert text["nodes"]["input"]["in_graph"] and set(text["nodes"]) == {*GROUPED.writers, "logits"}
    assert int((pt["edges_scores"] != 0).sum()) == len(text["edges"]) == Graph(3, 6, 6).n_edges


def foreign(tmp_path: Path, edges: dict[str, float], kept: set[str], bare_nodes: bool = False) -> Path:
    """A file as the other tools write it: one layer of two heads, no word of ours."""
    nodes = {name: name == "input" for name in ("input", "a0.h0", "a0.h1", "m0", "logits")}
    content = {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": nodes if bare_nodes else {name: {"in_graph": there} for name, there in nodes.items()},
        "edges": {name: {"score": score, "in_graph": name in kept} for name, score in edges.items()},
    }
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("bare_nodes", [False, True])
def test_a_file_of_theirs(tmp_path: Path, bare_nodes: bool) -> None:
    edges = {"input->a0.h0<k>": -2.0, "input->a0.h1<k>": 0.5, "input->m0": 3.0, "a0.h1->logits": 1.0}
    file = foreign(tmp_path, edges, {"input->a0.h1<k>", "a0.h1->logits"}, bare_nodes)
    plain = load_circuit(file)
    assert plain.graph == Graph(1, 2, 2) and plain.scores.ranks_by_magnitude and plain.scores.method == "theirs"
    assert set(plain.edges()) == {"input->a0.h1<k>", "a0.h1->logits"}
    assert float(plain.scores.values[0, plain.graph.edge_index("input->a0.h0<k>")]) == -2
    grouped = load_circuit(file, Graph(1, 2, 1))
    assert float(grouped.scores.values[0, grouped.graph.edge_index("input->a0.h0<k>")]) == -1.5
    assert names(grouped.graph, grouped.kept) == {"input->a0.h0<k>", "a0.h1->logits"}


def test_ours_by_any_name(tmp_path: Path) -> None:
    circuit = circuit_of(GROUPED, True)
    circuit.save(tmp_path)
    for name in ("", "circuit.json", "circuit.safetensors"):
        assert torch.equal(load_circuit(tmp_path / name, GROUPED).kept, circuit.kept)


@pytest.mark.parametrize(
    "text,words",
    [
        ("{", "not a readable circuit"),
        ("[]", "not a readable circuit"),
        ('{"cfg": {"n_layers": 1}}', "n_heads"),
        ('{"cfg": {"n_layers": 1, "n_heads": 2}, "edges": {"m0->a0.h0<q>": {"score": 1}}}', "no edge 'm0->a0.h0<q>'"),
        ('{"cfg": {"n_layers": 1, "n_heads": 2}, "edges": {"m0->logits": {"score": Infinity}}}', "score inf"),
    ],
)
def test_damaged_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_circuit(tmp_path / "x.json")


def test_wrong_files_and_graphs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    for name in ("x.pt", "missing.pt", "missing.json"):
        with pytest.raises(UserError, match="not a readable circuit"):
            load_circuit(tmp_path / name)
    circuit = circuit_of(GROUPED, True)
    circuit.save(tmp_path)
    with pytest.raises(UserError, match=r"3 layers x 6 heads .* the model has 3 layers x 6 heads"):
        load_circuit(tmp_path, Graph(3, 6, 6))
    export_circuit(circuit, tmp_path / "y.json", "mib_json", 8)
    with pytest.raises(UserError, match="the model has 2 layers"):
        load_circuit(tmp_path / "y.json", Graph(2, 6, 2))


def test_what_these_formats_cannot_hold(tmp_path: Path) -> None:
    scores = EdgeScores(GROUPED, torch.zeros(2, GROUPED.n_edges), "test", ("other", "end"))
    with pytest.raises(UserError, match="token role"):
        export_circuit(Circuit.cut(scores, 3), tmp_path / "x.json", "mib_json", 8)
    with pytest.raises(UserError, match="format=xml"):
        export_circuit(circuit_of(GROUPED, True), tmp_path / "x.xml", "xml", 8)
    for name, format in (("x.json", "mib_pt"), ("x.pt", "eap_ig_json"), ("x", "mib_json")):
        with pytest.raises(UserError, match="is read from files that end in"):
            export_circuit(circuit_of(GROUPED, True), tmp_path / name, format, 8)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export_circuit(circuit_of(GROUPED, True), tmp_path / "folder.pt", "mib_pt", 8)
    (tmp_path / "folder.pt").rmdir()
    with pytest.raises(UserError, match="cannot be written"):
        export_circuit(circuit_of(GROUPED, True), Path("/proc/x.pt"), "mib_pt", 8)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        export_circuit(circuit_of(GROUPED, True), tmp_path / "file" / "x.json", "mib_json", 8)
    assert {p.name for p in tmp_path.iterdir()} == {"file"}
