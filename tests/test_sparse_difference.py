"""The learned sparse difference: nothing between equal models, else a planted head's edges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch
from test_compare import bench_of, head_edges, linear_subject

from circuitlit.compare.sparse_difference import LearnedDifference, find_difference
from circuitlit.discover import MaskedLoss, Schedule, eap
from circuitlit.discover.method import Method
from circuitlit.discover.sparse_difference import DifferenceLearner, SparseDifference
from circuitlit.errors import UserError
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence, negative_metric
from circuitlit.report.difference import write_difference
from circuitlit.tasks import PairsModule

STEPS = 30


def two_headed(scale: float) -> Subject:
    """One block without norms in which head 2 writes much, and head 1 as much as it is told to; the others little."""
    subject = linear_subject(scale)
    with torch.no_grad():
        subject.model.transformer.h[0].attn.c_proj.weight[12:18] *= 150
        subject.model.transformer.h[0].mlp.c_proj.weight.zero_()
    return subject


def learned(scales: tuple[float, float], target: float = 0.85, penalty: float = 0.02) -> SparseDifference:
    """Train with room for one head's path beside the direct one."""
    subjects = [two_headed(scale) for scale in scales]
    batch = tiny_batch(rows=12, answers=1)
    losses = [MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), kl_divergence) for subject in subjects]
    references = [References(subject, "interchange") for subject in subjects]
    schedule = Schedule(STEPS, lr=0.3, start_sparsity=0.3, warmup=0.6, harden=0.3, final_noise=0.1)
    start = torch.ones(subjects[0].graph.n_edges)
    learner = DifferenceLearner(losses, references, start, target, schedule, penalty)
    optimizer = torch.optim.Adam(learner.parameters(), lr=schedule.lr)
    for step in range(STEPS):
        optimizer.zero_grad()
        learner.total(batch, step)["loss"].backward()
        optimizer.step()
    return learner.found([batch])


def test_equal_models_have_no_difference() -> None:
    found = learned((150.0, 150.0))
    assert not bool(found.open.any())
    assert torch.equal(found.base.values, found.tuned.values)


def test_a_planted_head_is_the_difference() -> None:
    found = learned((0.0, 250.0))
    own = head_edges(found.base.graph, "a0.h1")
    names = [found.base.graph.edge_name(edge) for edge in found.open[0].nonzero()[:, 0].tolist()]
    assert {"a0.h1->logits", "input->a0.h1<v>"} <= set(names)
    assert not bool((found.open[0] & ~own).any()), names
    assert bool((found.change[0][found.open[0]] > 0).all())


def test_without_a_difference_both_models_see_the_same_masks() -> None:
    subject = linear_subject()
    layout = MaskLayout(subject.graph)
    losses = [MaskedLoss(MaskedModel(subject), layout, kl_divergence)] * 2
    schedule = Schedule(10, lr=0.1)
    start = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    learner = DifferenceLearner(losses, [References(subject, "zero")] * 2, start, 0.5, schedule)
    one, other = learner.masks(3, 0)
    assert torch.equal(one, other)
    with torch.no_grad():
        learner.value[4], learner.gate_alpha[4] = 50.0, 20.0
    one, other = learner.masks(3, 0)
    assert not torch.equal(one, other) and float(other[4].detach()) == 1


def test_the_verb_writes_both_circuits_and_finds_nothing_between_equal_models(local: Path, tmp_path: Path) -> None:
    more = [
        "method=eap",
        f"tuned={local}/model",
        "logger=none",
        "callbacks=none",
        "difference.penalty=0.3",
        "mask.schedule.steps=12",
    ]
    call(*settings(local, tmp_path, *more), verb="difference")
    result = json.loads((tmp_path / "difference.json").read_text())
    assert result["n_different"] == 0 and result["edges_in_both"] == result["n_edges"]
    assert result["base_model"] == result["tuned_model"]
    assert (tmp_path / "base" / "circuit.json").is_file() and (tmp_path / "tuned" / "circuit.json").is_file()


@pytest.mark.parametrize("word", ["mask=sigmoid_topk", "mask.gates.temperature=0.3", "objective.error_weight=0.5"])
def test_settings_that_the_difference_does_not_use_are_refused(
    word: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failure(capsys, *settings(local, tmp_path, f"tuned={local}/model", word), verb="difference")
    assert f"no use for {word if word.startswith('mask=') else word.partition('=')[0]}; leave it" in said


def test_the_difference_is_found_from_python(local: Path, tmp_path: Path) -> None:
    benches = [bench_of(local), bench_of(local, torch.Generator().manual_seed(0))]
    schedule = Schedule(8, lr=0.3)
    settings = {"penalty": 0.003, "pairs": 4, "schedule": schedule, "folder": tmp_path}
    result = find_difference(benches[0], benches[1], Method.of(eap, negative_metric), **settings)
    result.save(tmp_path)
    assert LearnedDifference.load(tmp_path) == result and len(result.to_frame()) == result.n_different
    assert (tmp_path / "base" / "circuit.json").is_file() and [row["step"] for row in result.history] == [*range(8)]
    assert result.n_edges == benches[0].count and 0 <= result.edges_in_both <= result.n_edges
    page = write_difference(result, tmp_path).read_text()
    assert "Each model under both circuits" in page and 'src="http' not in page
    for wrong in ({"sparsity": 95}, {"pairs": 0}):
        with pytest.raises(UserError, match="must be at least 1 and sparsity"):
            find_difference(benches[0], benches[1], Method.of(eap, negative_metric), **wrong)
    short = {"sparsity": 0.9, "pairs": 2, "schedule": Schedule(2, 0.3)}
    few = find_difference(benches[0], benches[1], Method.of(eap, negative_metric), **short)
    assert few.n_edges == round(0.1 * few.n_edges_total) != result.n_edges
    with pytest.raises(UserError, match="penalty=0 must be above 0"):
        find_difference(benches[0], benches[1], Method.of(eap, negative_metric), penalty=0)


def test_both_models_are_trained_at_the_precision_of_training(local: Path) -> None:
    seen: list[str] = []

    def train(learner: DifferenceLearner, data: PairsModule) -> list[dict[str, float]]:
        seen.append(torch.get_float32_matmul_precision())
        return []

    before = torch.get_float32_matmul_precision()
    benches = [replace(bench_of(local), precision="medium") for _ in range(2)]
    find_difference(*benches, Method.of(eap, negative_metric), pairs=2, schedule=Schedule(2, lr=0.3), train=train)
    assert seen == ["medium"] and torch.get_float32_matmul_precision() == before
