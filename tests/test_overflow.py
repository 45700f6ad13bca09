"""Gradients that float32 cannot hold are left out of a training, and told."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import tiny_batch, tiny_model

from circuitlit.discover import MaskedLoss, MaskLearner, Schedule
from circuitlit.discover.overflow import LARGEST, Overflow
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence


def test_what_does_not_fit_counts_as_no_gradient(caplog: pytest.LogCaptureFixture) -> None:
    values = torch.zeros(5, requires_grad=True)
    overflow, factors = Overflow([values]), torch.tensor([0.5, -2 * LARGEST, torch.nan, torch.inf, -0.9 * LARGEST])
    for _ in range(2):
        (values * factors).sum().backward()
        assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 0.0, 0.0, -2 * float(torch.tensor(0.9 * LARGEST))]
    values.sum().backward()  # nothing is left out here
    with caplog.at_level(logging.WARNING):
        overflow.tell()
        overflow.tell()
    assert [record.message.split(" gradients")[0] for record in caplog.records] == ["in 2 backward passes"]


def test_zeros_in_a_long_chain_of_normalised_readers_do_not_end_a_training() -> None:
    """Without the embedding every reader normalises a sum of nothing, and the gradient grows with every layer."""
    model = MaskedModel(Subject(tiny_model("mistral", num_hidden_layers=24).float()), 2)
    graph, batch, references = model.subject.graph, tiny_batch(), References(model.subject, "zero")
    initial = torch.where(graph.writer_of < graph.inputs, -20.0, 20.0)
    learner = MaskLearner(
        MaskedLoss(model, MaskLayout(graph), kl_divergence), references, initial, 0.5, Schedule(3, 0.3)
    )
    raw = torch.where(initial > 0, 1.0, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(learner.loss(raw, batch, references(batch)), raw)
    assert not bool(gradient.isfinite().all())
    optimizer = torch.optim.Adam([learner.log_alpha], 0.3)
    learner.loss(
        learner.log_alpha.sigmoid().round() + (learner.log_alpha - learner.log_alpha.detach()), batch, references(batch)
    ).backward()
    optimizer.step()
    assert int(learner.overflow.passes) == 1
    assert bool(learner.log_alpha.isfinite().all())
    assert bool(optimizer.state[learner.log_alpha]["exp_avg_sq"].isfinite().all())
