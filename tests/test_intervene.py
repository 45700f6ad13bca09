"""Interventions: transplants and doses as identities, controls, corrections by hand, and the three verbs."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model

from circuitlit.compare.effects import PairBed, changed_logits, gain_share, scaled, specificity, without_nodes
from circuitlit.compare.matched import matched_edges, matched_nodes, mean_overlap
from circuitlit.compare.testing import benjamini_hochberg, holm, monotonicity, paired_p, rank_p, slope
from circuitlit.compare.transplant import Transplant, everything, withheld
from circuitlit.compare.writes import Writers, inner_nodes
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject, unwrap
from circuitlit.tasks.pair import Batch

NAMES = ("gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3", "gemma2", "gemma3_text")


def two(name: str) -> tuple[Subject, Subject]:
    return Subject(tiny_model(name)), Subject(tiny_model(name, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_all_nodes_make_the_tuned_model_and_none_the_base(name: str, batch: Batch) -> None:
    base, tuned = two(name)
    move = Transplant(base, tuned)
    ids, at = batch.clean, batch.positions
    before, after = base.logits(ids, at), tuned.logits(ids, at)
    assert float((before - after).abs().max()) > 0.1
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(move.logits([], ids, at), before, rtol=0, atol=0)
    torch.testing.assert_close(move.logits(everything(base.graph), ids, at), after, **close)
    for nodes, wanted in ((everything(base.graph), after), ([], before)):
        with move.weights(nodes) as changed:
            torch.testing.assert_close(changed.logits(ids, at), wanted, rtol=1e-12, atol=1e-12)
    with move.weights([]) as changed:
        torch.testing.assert_close(changed.logits(ids, at), before, rtol=0, atol=0)
    torch.testing.assert_close(base.logits(ids, at), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_dose_one_is_nothing_and_dose_nought_zero_ablation(name: str, batch: Batch) -> None:
    subject = Subject(tiny_model(name))
    writers, nodes = Writers(subject), ["a0.h1", "m1", "a2.h3"]
    bed = PairBed(subject, [batch])
    same = bed.measure(scaled(writers, nodes, 1.0))
    torch.testing.assert_close(same.metric, bed.full.metric, rtol=0, atol=1e-6)
    every = changed_logits(writers, batch.clean, nodes, lambda _node, own: own * 1.0)
    torch.testing.assert_close(every, subject.unembed(subject.hidden(batch.clean)), rtol=1e-12, atol=1e-12)
    model = MaskedModel(subject)
    zero = TestBed.build(model, References(subject, "zero"), [batch])
    cut = zero.run(without_nodes(subject.graph, nodes))
    none = bed.measure(scaled(writers, nodes, 0.0))
    torch.testing.assert_close(none.metric, cut.metric, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(none.kl, cut.kl, rtol=1e-4, atol=1e-5)
    assert float((none.metric - bed.full.metric).abs().max()) > 1e-3
