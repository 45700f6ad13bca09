"""Ablation by constants: means by hand, positions, and constants that are trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, settings
from conftest import tiny_batch, tiny_model

from circuitlit.discover import optimal_writers
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import Ablated, MaskedModel, References, mean_writers
from circuitlit.masked.ablation import run_writers, spread
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence


def test_means_are_over_real_tokens_only() -> None:
    subject = Subject(tiny_model("llama"))
    long, short = tiny_batch(rows=2, length=7), tiny_batch(rows=3, length=7, seed=1)
    short.lengths = torch.tensor([4, 5, 6])
    everywhere = mean_writers(subject, [long, short])
    positional = mean_writers(subject, [long, short], positional=True)
    runs = [run_writers(subject, batch.corrupted) for batch in (long, short)]
    for name in ("embed", "heads", "mlps"):
        rows = [
            getattr(run, name)[row, ..., :length, :]
            for run, batch in zip(runs, (long, short), strict=True)
            for row, length in enumerate(batch.lengths.tolist())
        ]
        by_hand = torch.cat(rows, -2).mean(-2)
        torch.testing.assert_close(getattr(everywhere, name)[0, ..., 0, :], by_hand, rtol=1e-5, atol=1e-5)
        fifth = torch.stack([row[..., 4, :] for row in rows if row.shape[-2] > 4]).mean(0)
        torch.testing.assert_close(getattr(positional, name)[0, ..., 4, :], fifth, rtol=1e-5, atol=1e-5)


def test_positions_that_no_prompt_reaches_have_the_overall_mean() -> None:
    subject, batch = Subject(tiny_model("gpt2")), tiny_batch()
    batch.lengths[:] = 5
    positional, overall = (mean_writers(subject, [batch], positional=p) for p in (True, False))
    torch.testing.assert_close(positional.mlps[..., 6, :], overall.mlps[..., 0, :], rtol=1e-5, atol=1e-5)
    short = tiny_batch(length=4)
    assert spread(positional, short).heads.shape == (3, 3, 4, 24)


def test_every_writer_has_its_own_mean() -> None:
    subject = Subject(tiny_model("gpt_neox"))
    mean = mean_writers(subject, [tiny_batch()])
    flat = mean.mlps.flatten(0, 2)
    assert float(torch.pdist(flat).min()) > 0.1


@pytest.mark.long
def test_trained_constants_hurt_less_than_means() -> None:
    subject = Subject(tiny_model("gpt2"))
    model = MaskedModel(subject)
    batch, unseen = tiny_batch(rows=16, seed=0), tiny_batch(rows=16, seed=1)
    mean = mean_writers(subject, [batch])
    start = References(subject, "mean", mean)
    optimal = optimal_writers(model, start, kl_divergence, [batch, tiny_batch(rows=16, seed=2)], steps=60, lr=0.05)

    def loss(constants: Ablated) -> float:
        total = 0.0
        for seed in range(10):
            draw = torch.Generator().manual_seed(1000 + seed)
            masks = scatter_edges(subject.graph, (torch.rand(1, subject.graph.n_edges, generator=draw) < 0.5).double())
            logits = model(masks, unseen.clean, spread(constants, unseen), unseen.positions)
            total += float(kl_divergence(logits, start.teacher(unseen), unseen).mean())
        return total / 10

    assert loss(optimal) < 0.97 * loss(mean)
    again = optimal_writers(model, start, kl_divergence, [batch, tiny_batch(rows=16, seed=2)], steps=60, lr=0.05)
    assert torch.equal(again.heads, optimal.heads)


@pytest.mark.parametrize(
    "more", [["ablation=optimal", "ablation.steps=3"], ["ablation=mean", "ablation.positional=true"]]
)
def test_constants_from_the_command_line(more: list[str], local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=none", *more))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["ablation"] in ("optimal", "mean") and result["corrupted"]["kl"]["value"] > 0
