"""The learned sparse difference: nothing between equal models, a planted head's edges between models that differ there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, settings
from conftest import tiny_batch
from test_compare import head_edges, linear_subject

from circuitlit.discover import MaskedLoss, Schedule
from circuitlit.discover.sparse_difference import DifferenceLearner, SparseDifference
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.objective import kl_divergence

STEPS = 120


def learned(scales: tuple[float, float], target: float = 0.4, penalty: float = 0.02) -> SparseDifference:
    """Train on two models of one block whose head 1 writes more or less."""
    subjects = [linear_subject(scale) for scale in scales]
    batch = tiny_batch(rows=12, answers=1)
    losses = [MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), kl_divergence) for subject in subjects]
    references = [References(subject, "interchange") for subject in subjects]
    schedule = Schedule(STEPS, lr=0.1, harden=0.3, final_noise=0.1)
    start = torch.ones(subjects[0].graph.n_edges)
    learner = DifferenceLearner(losses, references, start, target, schedule, penalty)
    optimizer = torch.optim.Adam(learner.parameters(), lr=schedule.lr)
    for step in range(STEPS):
        optimizer.zero_grad()
        learner.total(batch, step)["loss"].backward()
        optimizer.step()
    return learner.found()


def test_equal_models_have_no_difference() -> None:
    found = learned((1.0, 1.0))
    assert not bool(found.open.any())
    assert torch.equal(found.base.values, found.tuned.values)


@pytest.mark.parametrize("scales", [(0.0, 40.0), (40.0, 0.0)])
def test_a_planted_head_is_the_difference(scales: tuple[float, float]) -> None:
    found = learned(scales)
    own = head_edges(found.base.graph, "a0.h1")
    assert bool(found.open.any()) and not bool((found.open[0] & ~own).any())
    signs = found.shift[0][found.open[0]].sign().unique().tolist()
    assert signs == [1.0 if scales[1] else -1.0]


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
        learner.value[4], learner.gate_alpha[4] = 5.0, 20.0
    one, other = learner.masks(3, 0)
    assert not torch.equal(one, other)
    assert float(layout.share(learner.gates.open_probability(learner.log_alpha))) >= 0  # shifted inside, left as it is


def test_the_verb_writes_both_circuits_and_finds_nothing_between_equal_models(local: Path, tmp_path: Path) -> None:
    more = ["method=eap", f"tuned={local}/model", "logger=none", "callbacks=none", "difference.penalty=0.05"]
    call(*settings(local, tmp_path, *more), verb="difference")
    result = json.loads((tmp_path / "difference.json").read_text())
    assert result["edges_in_both"] == result["n_edges"] and result["base_model"] == result["tuned_model"]
    assert (tmp_path / "base" / "circuit.json").is_file() and (tmp_path / "tuned" / "circuit.json").is_file()
