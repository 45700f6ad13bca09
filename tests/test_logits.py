"""Logits are the stock model's, whoever asks: one function makes them of every family."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, VOCAB, tiny_batch, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.compare.effects import plain_logits, text_kl
from circuitlit.errors import UserError
from circuitlit.finetune import HeldOut, Optimisation, PreferenceTuner, RewardTuner, SupervisedTuner, answer_logits
from circuitlit.finetune.examples import Preference
from circuitlit.graph import MaskLayout
from circuitlit.heads.attention import Heads, run_streams
from circuitlit.heads.tail import run_tail
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject, record_reads
from circuitlit.model.prune import pruned
from circuitlit.objective import Outcome
from circuitlit.tasks.encoded import EncodedPairs, Row
from circuitlit.tasks.pair import Batch

STEPS = Optimisation(1, 1e-3)
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
}
TO_COME = {  # families that no circuit can be sought in yet, with their factors, caps and biases
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {"logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 3.0},
    "nanochat": {"final_logit_softcapping": 2.0},
    "vaultgemma": {"final_logit_softcapping": 2.0},
    "phi": {"num_key_value_heads": 4, "hidden_size": 32, "head_dim": 8},  # a bias on the logits
}


def stock(model, ids: Tensor, positions: Tensor) -> Tensor:
    """The library's own logits at some positions."""
    logits = model(input_ids=ids).logits
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))


def same(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-9 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def rows_of(batch: Batch) -> EncodedPairs:
    """The batch's pairs, ragged, as tuning takes them."""
    ends = batch.positions[:, 0].tolist()
    sides = zip(batch.clean.tolist(), batch.corrupted.tolist(), batch.answer.tolist(), ends, strict=True)
    wrong = batch.wrong.tolist()
    return EncodedPairs(
        [Row(tuple(c), tuple(d), tuple(a), end, 0, wrong[n], (0,) * len(c)) for n, (c, d, a, end) in enumerate(sides)],
        ("other",),
    )


def test_tuning_sees_the_stock_logits(subject: Subject, batch: Batch) -> None:
    model = subject.model
    expected = stock(model, batch.clean, batch.positions)
    same(answer_logits(model, batch.clean, batch.positions), expected)
    said = expected.log_softmax(-1).gather(-1, batch.answer[..., None])[..., 0]
    figures = SupervisedTuner(model, STEPS).figures(Preference(batch, None), 0)
    same(figures["loss"], -said.mean())
    against = tiny_batch(seed=5)
    against.clean = batch.clean
    other = expected.log_softmax(-1).gather(-1, against.answer[..., None])[..., 0]
    reference = torch.zeros(len(batch), 2)
    dpo = PreferenceTuner(model, STEPS, beta=1.0, reference=reference).figures(Preference(batch, against), 0)
    same(dpo["margin"], (said.sum(-1) - other.sum(-1)).mean())
    batch.clean.scatter_(1, batch.positions[:, 1:], batch.answer[:, :1])  # forced, as encoding does
    tokens = batch.answer[:, None].repeat(1, 2, 1)
    reward = RewardTuner(model, STEPS, group=2, reference=model)
    for copy in reward._logits(model, batch, tokens).unbind(1):
        same(copy, stock(model, batch.clean, batch.positions))


def test_held_out_pairs_are_measured_on_the_stock_logits(subject: Subject, batch: Batch) -> None:
    expected = stock(subject.model, batch.clean, batch.positions)
    teacher = expected.float().log_softmax(-1)
    base = HeldOut(subject.model, rows_of(batch), 2).base
    same(base.logit_diff, Outcome.of(expected, teacher, batch).logit_diff)
    other = tiny_model(subject.name, seed=3).eval()
    moved = HeldOut(subject.model, rows_of(batch), 2).measure(other)
    by_hand = Outcome.of(stock(other, batch.clean, batch.positions), teacher, batch)
    same(moved.kl, by_hand.kl)


def test_measuring_sees_the_stock_logits(subject: Subject, batch: Batch) -> None:
    expected = stock(subject.model, batch.clean, batch.positions)
    same(subject.logits(batch.clean, batch.positions), expected)
    same(plain_logits(subject, batch), expected)
    references = References(subject, "interchange")
    same(references.compute(batch).teacher, expected.float().log_softmax(-1))
    masks = MaskLayout(subject.graph).dense(torch.ones(1, subject.graph.n_edges, dtype=torch.float64))
    same(MaskedModel(subject)(masks, batch.clean, references.compute(batch).ablated, batch.positions), expected)
    with record_reads(subject) as reads:
        subject.hidden(batch.clean)
    everywhere = subject.model(input_ids=batch.clean).logits
    same(subject.unembed(reads.final_normed[0]), everywhere)
    same(text_kl(subject, batch.clean, lambda: everywhere), torch.zeros(len(batch)))


def test_heads_see_the_stock_logits(subject: Subject, batch: Batch) -> None:
    expected = subject.model(input_ids=batch.clean).logits
    same(subject.read_out(run_streams(subject, batch.clean)[-1]), expected)
    tokens = torch.tensor([3, 1, 4])
    same(subject.read_out(run_streams(subject, batch.clean)[-1], tokens), expected[..., tokens])
    if subject.graph.coupled:
        with pytest.raises(UserError, match="norm stands behind the attention"):
            Heads(subject)
        return
    heads = Heads(subject)
    same(subject.read_out(run_tail(heads, 0, run_streams(subject, batch.clean)[0])), expected)


def test_heads_refuse_a_bound_on_attention() -> None:
    subject = Subject(tiny_model("llama"))
    subject.anatomy = replace(subject.anatomy, softcap="scaling")  # as a family with a bound and no norm behind
    with pytest.raises(UserError, match="bounds the scores"):
        Heads(subject)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_loses_nothing_keeps_its_logits(name: str, batch: Batch) -> None:
    model = tiny_model(name).eval()
    if name.startswith("gemma"):
        with pytest.raises(UserError, match="none can be cut out"):
            pruned(model, [])
        return
    small = pruned(model, [])
    same(answer_logits(small, batch.clean, batch.positions), stock(model, batch.clean, batch.positions))


@pytest.mark.parametrize("name", TO_COME)
def test_factors_caps_and_biases_of_other_families(name: str, batch: Batch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**SMALL, **TO_COME[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        same(answer_logits(model, batch.clean, batch.positions), stock(model, batch.clean, batch.positions))


def test_nobody_else_makes_logits() -> None:
    root = Path(__file__).parent.parent / "circuitlit"
    raw = re.compile(r"output_embeddings\(|lm_head|softcapping|logits?_scal")
    users = {str(path.relative_to(root)) for path in root.rglob("*.py") if raw.search(path.read_text())}
    own = {"bases", "families", "logits", "planted", "tracr"}  # rows, and models that are made here
    assert users == {f"model/{name}.py" for name in own}
