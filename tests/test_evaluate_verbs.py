"""The verbs evaluate and export on a tiny local model: a whole run, files of other tools, wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings

from circuitlit.evaluate.statistics import INTERVALS
from circuitlit.graph import Circuit, EdgeScores, Graph, load_circuit

TINY = Graph(2, 2, 2)
QUICK = ["logger=none", "evaluate.knockouts=2", "evaluate.parts=3", "evaluate.ablation_pairs=4"]


@pytest.fixture(scope="module")
def found(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `attribute`."""
    folder = tmp_path_factory.mktemp("attribute")
    call(*settings(local, folder, "logger=none"), verb="attribute")
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.long
def test_evaluate_repeats_what_the_run_said_and_adds_to_it(
    found: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*settings(local, tmp_path, *QUICK, f"circuit={found}", "evaluate.smallest=0.8"), verb="evaluate")
    ours, theirs = result_of(tmp_path), result_of(found)
    untimed = {"seconds", "seconds_by_phase", "provenance"}
    assert {k: v for k, v in ours.items() if k in theirs.keys() - untimed} == {
        k: v for k, v in theirs.items() if k not in untimed
    }
    assert ours["circuit"]["provenance"] == Circuit.load(found).provenance
    assert set(ours["curve"]["cpr"]) == set(INTERVALS) and len(ours["curve"]["points"]) == 10
    assert ours["completeness"]["n_knockouts"] == 2 and ours["minimality"]["edges"]["n_parts"] == 3
    assert ours["smallest"]["faithfulness"]["status"] in ("OK", "FAILED")
    assert {"report.html", "circuit.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert "CMD" in capsys.readouterr().out


@pytest.mark.parametrize("format,file", [("mib_json", "mib_json.json"), ("mib_pt", "mib_pt.pt")])
def test_exported_and_evaluated_again(format: str, file: str, found: Path, local: Path, tmp_path: Path) -> None:
    call(f"circuit={found}", f"format={format}", f"hydra.run.dir={tmp_path}/out", "logger=none", verb="export")
    exported = tmp_path / "out" / file
    assert torch.equal(load_circuit(exported).kept, Circuit.load(found).kept)
    more = [*QUICK, f"circuit={exported}", "evaluate.curve_pairs=0"]
    call(*settings(local, tmp_path / "again", *more), verb="evaluate")
    again, first = result_of(tmp_path / "again"), result_of(found)
    assert again["kl"] == first["kl"] and again["n_edges_reachable"] == first["n_edges_reachable"]
    assert "curve" not in again


def test_scores_without_a_circuit_are_cut(found: Path, local: Path, tmp_path: Path) -> None:
    call(f"circuit={found}", f"out={tmp_path}/x.json", f"hydra.run.dir={tmp_path}/out", verb="export")
    content = json.loads((tmp_path / "x.json").read_text())
    for edge in content["edges"].values():
        edge["in_graph"] = False
    (tmp_path / "x.json").write_text(json.dumps(content))
    more = [*QUICK, f"circuit={tmp_path}/x.json", "sparsity.target=0.7", "sparsity.select=greedy"]
    call(*settings(local, tmp_path / "again", *more, "evaluate.ranking=signed"), verb="evaluate")
    result = result_of(tmp_path / "again")
    scores = Circuit.load(found).scores
    assert result["n_edges"] == round(0.3 * scores.graph.n_edges)
    assert (result["curve"]["ranking"], result["curve"]["select"]) == ("signed", "greedy")
    cut = Circuit.cut(scores, result["n_edges"], select="greedy")
    assert torch.equal(Circuit.load(tmp_path / "again").kept, cut.kept)


def test_masks_start_from_a_file_of_another_tool(found: Path, local: Path, tmp_path: Path) -> None:
    call(f"circuit={found}", f"out={tmp_path}/x.pt", "format=mib_pt", f"hydra.run.dir={tmp_path}/out", verb="export")
    call(*settings(local, tmp_path / "run", "logger=none", f"mask.init_from={tmp_path}/x.pt", "mask.schedule.lr=0"))
    assert torch.equal(Circuit.load(tmp_path / "run").kept, Circuit.load(found).kept)


def test_a_circuit_grown_from_the_logits(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=none", "sparsity.select=greedy"), verb="attribute")
    circuit = Circuit.load(tmp_path)
    assert torch.equal(circuit.kept, Circuit.cut(circuit.scores, circuit.n_edges, select="greedy").kept)


def other_circuit(folder: Path, roles: tuple[str, ...] = (), graph: Graph = TINY, kind="effect") -> Path:
    folder.mkdir()
    scores = EdgeScores(graph, torch.zeros(max(1, len(roles)), graph.n_edges), "test", roles, kind=kind)
    Circuit.cut(scores, 5).save(folder)
    return folder


BAD = {
    "no circuit": ([], "circuit has no value"),
    "other graph": (["circuit={tmp}/other"], "the model has 2 layers x 2 heads (2 key/value)"),
    "other roles": (["circuit={tmp}/roles"], "take a task with its roles"),
    "not a circuit": (["circuit={tmp}"], "not a readable circuit"),
    "gates by size": (["circuit={tmp}/gates", "evaluate.ranking=absolute"], "scores without a sign"),
    "other reference": (["circuit={tmp}/same", "evaluate.reference=ioi_gpt2"], "take scores of that model"),
}


@pytest.mark.parametrize("name", BAD)
def test_evaluate_refuses_in_one_sentence(
    name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_circuit(tmp_path / "other", graph=Graph(3, 2, 2))
    other_circuit(tmp_path / "same")
    other_circuit(tmp_path / "roles", roles=("other", "s1", "end"))
    other_circuit(tmp_path / "gates", kind="gate")
    more, words = BAD[name]
    arguments = settings(local, tmp_path / "out", *QUICK, *(m.replace("{tmp}", str(tmp_path)) for m in more))
    assert words in failure(capsys, *arguments, verb="evaluate")
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {".hydra", "evaluate.log"}


BAD_EXPORTS = {
    "width": (["circuit={tmp}/same"], "d_model=768"),
    "roles": (["circuit={tmp}/roles", "d_model=8"], "find it without roles"),
}


@pytest.mark.parametrize("name", BAD_EXPORTS)
def test_export_refuses_in_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_circuit(tmp_path / "same")
    other_circuit(tmp_path / "roles", roles=("other", "end"))
    more, words = BAD_EXPORTS[name]
    arguments = [*(m.replace("{tmp}", str(tmp_path)) for m in more), f"hydra.run.dir={tmp_path}/out"]
    assert words in failure(capsys, *arguments, verb="export")
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {".hydra", "export.log"}
