"""Circuits planted among distractors, interchange ablation: which edges does each method rank first?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import covering
from planted_circuits import CONFIGS, pairs, planted_subject, true_edges

from circuitlit.discover import (
    HardConcrete,
    MaskedLoss,
    MaskLearner,
    Schedule,
    SigmoidTopK,
    UniformGradient,
    acdc,
    clean_corrupted,
    eap,
    eap_ig,
    eap_ig_activations,
    exact,
    information_flow,
    initial_log_alpha,
    mask_gradients,
    random_scores,
    relp,
)
from circuitlit.discover.gates import Gates
from circuitlit.evaluate import TestBed
from circuitlit.evaluate.ground_truth import edge_auc
from circuitlit.graph import EdgeScores, MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence, negative_metric
from circuitlit.tasks.pair import Batch

CIRCUITS = ("induction", "copy")
Method = Callable[[MaskedLoss, References, list[Batch]], EdgeScores]


def learned(gates: Gates, steps: int, sizes: tuple[float, float] | None = None, warm: bool = False) -> Method:
    """Masks that all start equal, or from their gradients (`warm`) and half the edges, as a method."""

    def method(loss: MaskedLoss, references: References, batches: list[Batch]) -> EdgeScores:
        start = 0.5 if warm else 0.0
        schedule = Schedule(steps, 0.3, start_sparsity=start, warmup=0.7, harden=0.5, final_noise=0.1, sizes=sizes)
        scores = mask_gradients(loss, references, batches, steps=10) if warm else None
        count = round(0.03 * loss.layout.graph.n_edges)
        initial = initial_log_alpha(loss.layout, "confident" if warm else "equal", scores, count, 3.0)
        learner = MaskLearner(loss, references, initial, 0.97, schedule, gates, 0, True)
        optimizer = torch.optim.Adam([learner.log_alpha], lr=schedule.lr)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = schedule.lr * schedule.lr_factor(step)
            optimizer.zero_grad()
            learner.masked_loss(batches[0], step, 0).backward()
            optimizer.step()
        return learner.scores()

    return method


# By the objective that each of them takes; KL has no gradient at the clean run.
METHODS: dict[str, tuple[Callable, Method]] = {
    "random": (kl_divergence, random_scores),
    "information flow": (kl_divergence, information_flow),
    "eap": (negative_metric, eap),
    "relp": (negative_metric, relp),
    "clean-corrupted": (negative_metric, clean_corrupted),
    "eap_ig": (kl_divergence, eap_ig),
    "eap_ig activations": (kl_divergence, eap_ig_activations),
    "mask gradients": (kl_divergence, partial(mask_gradients, steps=10)),
    "exact": (kl_divergence, exact),
    "acdc": (kl_divergence, partial(acdc, threshold=0.05)),
    "hard concrete, warm": (kl_divergence, learned(HardConcrete(0.4), 150, warm=True)),
    "hard concrete": (kl_divergence, learned(HardConcrete(0.4), 150)),
    "uniform gradient": (kl_divergence, learned(UniformGradient(), 150)),
    "sigmoid top-k": (kl_divergence, learned(SigmoidTopK(), 150, (0.01, 1.0))),
}


def scored(subject: Subject, circuit: str, method: str) -> EdgeScores:
    objective, function = METHODS[method]
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), objective)
    return function(loss, References(subject, "interchange"), [pairs(circuit, 24, seed=0)])


def bed_of(subject: Subject, circuit: str) -> TestBed:
    return TestBed.build(MaskedModel(subject), References(subject, "interchange"), [pairs(circuit, 24, seed=1)])


@pytest.mark.slow
@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_planted_edges_are_the_circuit(name: str, circuit: str) -> None:
    """The model does the task, the planted edges alone do nearly what it does, and each of them is needed."""
    subject = planted_subject(name, circuit, seed=0)
    true, bed = true_edges(subject, circuit), bed_of(subject, circuit)
    assert float(bed.full.accuracy.mean()) == 1.0 and float(bed.corrupted.accuracy.mean()) < 0.3
    corrupted = float(bed.corrupted.kl.mean())
    assert float(bed.run(true[None]).kl.mean()) < 0.1 * corrupted
    without = []
    for edge in range(subject.graph.n_edges):
        kept = torch.ones(1, subject.graph.n_edges, dtype=torch.bool)
        kept[0, edge] = False
        without.append(float(bed.run(kept).kl.mean()))
    losses = torch.tensor(without)
    assert float(losses[true].min()) > 0.3 * corrupted and float(losses[true].min()) > 5 * float(losses[~true].max())
    assert float(losses[~true].max()) > 0  # distractors are heard


@pytest.mark.parametrize("name,method", covering(CONFIGS, ["exact", "acdc", "eap_ig"]))
def test_methods_find_induction(name: str, method: str) -> None:
    subject = planted_subject(name, "induction", seed=0)
    assert edge_auc(scored(subject, "induction", method), true_edges(subject, "induction")) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_edge_auc_of_every_method(name: str, circuit: str) -> None:
    """Run with -s for the table: mean and range over three seeds of the distractors."""
    subjects = [planted_subject(name, circuit, seed) for seed in range(3)]
    for method in METHODS:
        areas = [edge_auc(scored(one, circuit, method), true_edges(one, circuit)) for one in subjects]
        line = f"{circuit:10} {name:9} {method:19} {sum(areas) / 3:.3f} [{min(areas):.3f}, {max(areas):.3f}]"
        print(line)
        if method in ("exact", "acdc", "hard concrete, warm", "sigmoid top-k"):
            assert min(areas) > 0.95, line
