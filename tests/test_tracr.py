"""Programs compiled by Tracr: the port is exact, their edges are known, and the methods find exactly those."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import QUICK_LOOK, call, failure

from circuitlit.evaluate import TestBed, completeness
from circuitlit.evaluate.knockouts import edge_minimality, node_minimality
from circuitlit.graph import Circuit, EdgeScores, load_circuit
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.tracr import load_tracr
from circuitlit.tasks import PairsModule, tracr

pytest.importorskip("tracr", reason="needs the extra: pip install 'circuitlit[tracr]'")

ROOT = Path(__file__).resolve().parent.parent
TRUE = {
    "reverse": {
        "input->a0.h0<v>",  # how much of BOS is seen tells the length
        "a0.h0->m0",
        "input->m0",
        "m0->m1",  # length less index, less one: where the opposite token stands
        "pos->m1",
        "input->m1",
        "m1->m2",
        "m2->a3.h0<q>",
        "pos->a3.h0<k>",
        "input->a3.h0<v>",
        "a3.h0->logits",
    },
    "proportion": {
        "input->m0",  # is it an x
        "pos->a1.h0<q>",  # attend to all tokens so far
        "pos->a1.h0<k>",
        "m0->a1.h0<v>",
        "a1.h0->logits",
    },
}
EDGES = {"reverse": 94, "proportion": 32}


@pytest.fixture(scope="module", params=TRUE)
def program(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def subject(program: str) -> Subject:
    return load_tracr(program)


@pytest.fixture(scope="module")
def bed(program: str, subject: Subject) -> TestBed:
    assert subject.tokenizer is not None
    data = PairsModule(tracr(subject.tokenizer, program, 0), subject.tokenizer, 64, 0)
    return TestBed.build(MaskedModel(subject), References(subject, "zero"), data.test.batches(400))


@pytest.mark.long
def test_the_port_does_what_the_program_does(bed: TestBed) -> None:
    assert float(bed.full.accuracy.min()) == 1.0
    assert float(bed.corrupted.accuracy.mean()) < 0.4


def test_all_masks_on_is_the_model_and_all_off_is_not(subject: Subject, bed: TestBed) -> None:
    everything = torch.ones(1, subject.graph.n_edges, dtype=torch.bool)
    assert float(bed.run(everything).kl.abs().max()) < 1e-4
    assert float(bed.run(~everything).kl.mean()) == pytest.approx(float(bed.corrupted.kl.mean()))


def test_edges_read_off_the_weights_are_those_typed_by_hand(program: str, subject: Subject) -> None:
    graph, true = subject.graph, subject.true_edges
    assert graph.n_edges == EDGES[program] and graph.writers[:2] == ["input", "pos"]
    assert true is not None
    assert {graph.edge_name(int(edge)) for edge in true.nonzero()} == TRUE[program]


def test_each_true_edge_matters_and_no_other_does(subject: Subject, bed: TestBed) -> None:
    """Ablating any one edge of the whole model hurts if and only if it is true."""
    true = subject.true_edges
    assert true is not None
    assert float(bed.run(true[None]).kl.abs().max()) < 1e-4
    for edge in range(subject.graph.n_edges):
        kept = torch.ones(1, subject.graph.n_edges, dtype=torch.bool)
        kept[0, edge] = False
        assert bool(bed.run(kept).kl.mean() > 0.01) == bool(true[edge]), subject.graph.edge_name(edge)


def test_prompts_of_different_length_share_a_batch(program: str, subject: Subject, bed: TestBed) -> None:
    batch = bed.batches[0]
    short = batch.lengths == batch.lengths.min()
    alone = subject.logits(batch.clean[short][:, : int(batch.lengths.min())], batch.positions[short][:, :1])
    together = subject.logits(batch.clean, batch.positions)[short][:, :1]
    torch.testing.assert_close(alone, together)


@pytest.mark.long
@pytest.mark.parametrize(
    "name,more",
    [
        ("proportion", ["mask.schedule.steps=60", "trainer.accumulate_grad_batches=2"]),
        pytest.param("proportion", [], marks=pytest.mark.slow),
        pytest.param("reverse", [], marks=pytest.mark.slow),
    ],
)
def test_masks_find_the_program_exactly(name: str, more: list[str], tmp_path: Path) -> None:
    out = [f"hydra.run.dir={tmp_path}", "logger=none", "callbacks=headless", "evaluate.controls=3"]
    call(f"experiment=tracr_{name}", *out, *more)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["edge_roc_auc"] == 1.0
    assert result["true_edges_found"] == result["true_edges"] == result["n_edges"] == len(TRUE[name])
    assert set(Circuit.load(tmp_path).edges()) == TRUE[name]
    assert result["full"]["accuracy"]["value"] == result["accuracy"]["value"] == 1.0


def exact_seeds(folder: Path, program: str, seeds: str, *more: str) -> int:
    """How many seeds launch/tracr.py calls exact; ACDC must be."""
    environment = {**os.environ, "PROGRAMS": program, "SEEDS": seeds}
    command = [sys.executable, str(ROOT / "launch" / "tracr.py"), str(folder), *more]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    match = re.fullmatch(
        rf"{program}: masks exact with (\d+) of (\d+) seeds \[.*\], \d+ s each; ACDC exact.*", told.strip()
    )
    assert match is not None and int(match[2]) == len(seeds.split(","))
    return int(match[1])


def test_the_script_counts_exact_seeds(tmp_path: Path) -> None:
    results = {"acdc": (5, 5), "seed3": (5, 5), "seed4": (4, 5), "seed5": (5, 6)}  # true edges found, edges
    for name, (right, edges) in results.items():
        (tmp_path / f"proportion-{name}").mkdir()
        result = {"n_edges": edges, "true_edges_found": right, "true_edges": 5, "seconds": 1.0}
        (tmp_path / f"proportion-{name}" / "result.json").write_text(json.dumps(result))
    assert exact_seeds(tmp_path, "proportion", "3,4,5") == 1


@pytest.mark.slow
@pytest.mark.parametrize("program", ["proportion", "reverse"])
def test_masks_find_the_program_with_nearly_every_seed(program: str, tmp_path: Path) -> None:
    """Seeds below 50 were looked at while settings were tried."""
    assert exact_seeds(tmp_path, program, ",".join(map(str, range(50, 70)))) >= 19


@pytest.mark.long
@pytest.mark.parametrize("name", TRUE)
def test_acdc_finds_the_program_exactly(name: str, tmp_path: Path) -> None:
    out = [f"hydra.run.dir={tmp_path}", "logger=none", "evaluate.controls=3"]
    call(f"experiment=tracr_{name}", "method=acdc", "sparsity=own", *out, verb="attribute")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["edge_roc_auc"] == 1.0
    assert set(Circuit.load(tmp_path).edges()) == TRUE[name]
    assert result["n_edges"] == len(TRUE[name])


def test_a_task_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, "task=tracr_proportion", "model=tracr_reverse", f"hydra.run.dir={tmp_path}", "logger=none")
    assert "model=tracr_proportion" in line


def test_a_quick_look_at_a_program(tmp_path: Path) -> None:
    own = ["task=tracr_reverse", "model=tracr_reverse", "ablation=zero", f"hydra.run.dir={tmp_path}"]
    call(*own, *QUICK_LOOK, verb="attribute")
    assert json.loads((tmp_path / "result.json").read_text())["n_pairs"] == 7


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit of the program `proportion`, found by mask gradients."""
    folder = tmp_path_factory.mktemp("tracr")
    call(*on_tracr(folder), "method=mask_gradients", "sparsity.target=0.7", "evaluate.controls=3", verb="attribute")
    return folder


def on_tracr(out: Path) -> list[str]:
    return ["experiment=tracr_proportion", f"hydra.run.dir={out}", "logger=none", "callbacks=headless"]


@pytest.mark.long
def test_positions_are_no_node(program: str, subject: Subject, bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subject.true_edges is not None
    true = subject.true_edges[None]
    circuit = Circuit.of(EdgeScores(subject.graph, true.float(), "truth"), true)
    nodes = {edge.split("->")[0] for edge in TRUE[program]} - {"input", "pos"}
    minimal = node_minimality(bed, circuit, pairs=16)
    assert minimal.n_candidates == len(nodes) and {name for name, _ in minimal.worst} == nodes
    assert edge_minimality(bed, circuit, pairs=16).n_candidates == len(TRUE[program])
    seen: list[torch.Tensor] = []
    run = TestBed.run
    monkeypatch.setattr(TestBed, "run", lambda bed, kept, *rest: (seen.append(kept), run(bed, kept, *rest))[1])
    assert completeness(bed, circuit, knockouts=8, pairs=16).n_knockouts == 8
    damaged = (~torch.cat(seen[2::2])).any(0)  # the model without K
    assert {subject.graph.edge_name(int(edge)).split("->")[0] for edge in damaged.nonzero()} == nodes


@pytest.mark.long
def test_verbs_on_a_program_work_or_say_why_not(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["evaluate.knockouts=2", "evaluate.curve_pairs=0", "evaluate.controls=3"]
    call(*on_tracr(tmp_path / "evaluate"), *quick, f"circuit={found}", verb="evaluate")
    minimality = json.loads((tmp_path / "evaluate" / "result.json").read_text())["minimality"]["nodes"]
    assert not {"input", "pos"} & {name for name, _ in minimality["worst"]}
    call(f"run={found}", f"hydra.run.dir={tmp_path}/report", verb="report")
    assert "pos" in (found / "report.html").read_text()
    call(f"circuit={found}", f"hydra.run.dir={tmp_path}/export", "logger=none", verb="export")
    assert load_circuit(tmp_path / "export" / "mib_json.json").graph.inputs == 2
    capsys.readouterr()
    for verb, more in (
        ("heads", [f"heads.circuit={found}"]),
        ("intervene", [f"circuit={found}"]),
        ("export", [f"circuit={found}", "format=pruned"]),
    ):
        assert "compiled program" in failure(capsys, *on_tracr(tmp_path / verb), *more, verb=verb)
