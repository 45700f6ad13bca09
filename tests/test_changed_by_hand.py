"""Figures of a model whose weights were changed by hand, against values worked out by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from circuitlit.compare import weight_changes
from circuitlit.compare.capability import capabilities
from circuitlit.compare.effects import PairBed, gain_share, plain_logits
from circuitlit.compare.transplant import Transplant
from circuitlit.compare.weight_figures import Intruders, Reach, WeightChange, node_changes
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.tasks.pair import Batch

WORDS = 10  # tokens, and width of the stream: each token is an axis of its own
EPSILON = 1e-5  # of GPT-2's norms


def test_magnitude_sparsity_layers_and_kinds_by_hand() -> None:
    """Four weights of a float64 Llama model move, one of them by less than counts as a change."""
    base = Subject(tiny_model("llama"))
    model = copy.deepcopy(base.model)
    layers = model.model.layers
    with torch.no_grad():
        layers[0].self_attn.q_proj.weight[7, 3] += 3.0  # head 1 of six rows each
        layers[1].mlp.down_proj.weight[0, 0] += 4.0
        layers[2].self_attn.k_proj.weight[6, 0] += 12.0  # key head 1, of query heads 2 and 3
        layers[2].self_attn.o_proj.weight[0, 23] += 5e-6  # head 3; below 1e-5
    parts = list(weight_changes(base, Subject(model)))
    whole = WeightChange.of(parts, Intruders(0, [], {}))
    weights = sum(p.numel() for p in base.model.parameters())
    length = math.sqrt(sum(float(p.detach().square().sum()) for p in base.model.parameters()))
    assert whole.norm == pytest.approx(13.0) and whole.relative == pytest.approx(13.0 / length)
    assert whole.unchanged == pytest.approx(1 - 4 / weights, abs=1e-12)
    assert whole.still == pytest.approx(1 - 3 / weights, abs=1e-12)

    layer, kind, node = (whole.distribution[place] for place in ("layer", "kind", "node"))
    assert layer.share == pytest.approx({"0": 9 / 169, "1": 16 / 169, "2": 144 / 169})
    assert (layer.top_share, layer.gini) == (pytest.approx(144 / 169), pytest.approx(2 * (144 - 9) / (3 * 169)))
    entropy = -sum(share * math.log(share) for share in layer.share.values())
    assert layer.entropy == pytest.approx(entropy / math.log(3))
    assert {name: share for name, share in kind.share.items() if share > 1e-9} == pytest.approx(
        {"q": 9 / 169, "mlp": 16 / 169, "k": 144 / 169}
    )
    moved = {"a0.h1": 9 / 169, "m1": 16 / 169, "a2.h2": 72 / 169, "a2.h3": 72 / 169}  # a key head is its group's
    assert {name: share for name, share in node.share.items() if share > 1e-9} == pytest.approx(moved)
    assert {name for name, change in node_changes(parts).items() if change > 1e-6} == set(moved)

    reach = Reach.of(parts)
    assert (reach.modules, reach.layers, reach.layers_80) == (4, 3, [2])
    assert reach.effective_rank == pytest.approx(1.0)  # each is a single weight's


def test_relative_change_of_a_node_by_hand() -> None:
    """Doubling a head's query, key, value and output weights, biases included, is a change of 1; others have 0."""
    base = Subject(tiny_model("gpt2"))
    model = copy.deepcopy(base.model)
    attention, rows = model.transformer.h[1].attn, slice(6, 12)  # head 1 of width 6
    with torch.no_grad():
        for start in (0, 24, 48):
            own = slice(start + rows.start, start + rows.stop)
            attention.c_attn.weight[:, own] *= 2
            attention.c_attn.bias[own] *= 2
        attention.c_proj.weight[rows] *= 2
    found = node_changes(list(weight_changes(base, Subject(model))))
    assert found.pop("a1.h1") == pytest.approx(1.0)
    assert set(found.values()) == {0.0}


def test_rounding_of_bfloat16_is_still_but_not_unchanged() -> None:
    """Of weights at 1, half move by their last place and one by a hundred of them."""
    model = tiny_model("gpt2").to(torch.bfloat16)
    base, place = copy.deepcopy(model), model.transformer.h[0].mlp.c_fc
    ulp = 2**-7  # the last place of bfloat16 between 1 and 2
    with torch.no_grad():
        base.transformer.h[0].mlp.c_fc.weight.fill_(1.0)
        place.weight.fill_(1.0)
        place.weight[:12] += ulp
        place.weight[0, 0] = 1.0 + 100 * ulp
    (part,) = [p for p in weight_changes(Subject(base), Subject(model)) if p.name == "m0.c_fc"]
    assert part.change.unchanged == pytest.approx(0.5)
    assert part.change.still == pytest.approx(1 - 1 / part.numel)


def lookup(strengths: tuple[float, float]) -> Subject:
    """A model that says `t + 5` after token t < 5: head h writes `strengths[h]` times the token's centred axis there.

    Attention is even, so on a prompt of one token again and again a head sees that token alone. MLPs write nothing.
    """
    config = GPT2Config(n_embd=2 * WORDS, n_layer=1, n_head=2, vocab_size=2 * WORDS, n_positions=8)
    model = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(2 * WORDS))  # tied: logits are the stream after the last norm
        block = model.transformer.h[0]
        for norm in (block.ln_1, model.transformer.ln_f):
            norm.weight.fill_(1.0)
        for head, strength in enumerate(strengths):
            for token in range(5):
                block.attn.c_attn.weight[token, 4 * WORDS + head * WORDS + token] = 1.0  # value: which token
                block.attn.c_proj.weight[head * WORDS + token, token + 5] = strength
    return Subject(model)


def lead(strength: float) -> float:
    """By how many logits the word written to leads one that nobody writes to: both norms by hand.

    The stream is e_t + sum over the tokens u < 5 of strength x (normed e_t)_u on axis u + 5.
    """
    n = 2 * WORDS
    mean, deviation = 1 / n, math.sqrt(1 / n - 1 / n**2 + EPSILON)
    own, other = (1 - mean) / deviation, -mean / deviation
    stream = [1.0, strength * own, *([strength * other] * 4), *([0.0] * (n - 6))]
    middle = sum(stream) / n
    spread = math.sqrt(sum((x - middle) ** 2 for x in stream) / n + EPSILON)
    return (stream[1] - 0.0) / spread


def asked(tokens: list[int]) -> Batch:
    """Prompts of one token three times; the answer is five further on, the wrong answer the last token."""
    words = torch.tensor(tokens)
    batch = tiny_batch(rows=len(tokens), length=3, answers=1)
    prompt = words[:, None].repeat(1, 3)
    wrong = torch.full_like(words, 2 * WORDS - 1)
    return replace(batch, clean=prompt, corrupted=prompt, answer=words[:, None] + 5, wrong=wrong)


def test_capability_gain_by_hand() -> None:
    base, tuned = lookup((0.0, 0.0)), lookup((3.0, 1.0))
    known = [place % 5 for place in range(40)]
    beds = {"gained": PairBed(base, [asked(known)]), "untouched": PairBed(base, [asked([t + 10 for t in known[:20]])])}

    def after(bed: PairBed, subject: Subject) -> Outcome:
        return bed.measure(lambda batch: plain_logits(subject, batch))

    outcomes = {name: (bed.full, after(bed, tuned)) for name, bed in beds.items()}
    found = capabilities(outcomes, chance=0.05, min_effect=0.05)
    gained, untouched = found["gained"], found["untouched"]
    assert gained.verdict == "gained" and (gained.base.value, gained.tuned.value, gained.change.value) == (0, 1, 1)
    assert gained.metric_change.value == pytest.approx(lead(4.0), rel=1e-5)
    assert untouched.verdict == "unchanged" and untouched.metric_change.value == 0

    move, bed = Transplant(base, tuned), beds["gained"]
    for nodes, strength in ((["a0.h0"], 3.0), (["a0.h1"], 1.0), (["a0.h0", "a0.h1"], 4.0), (["m0"], 0.0)):
        with move.weights(nodes) as changed:
            share = gain_share(bed.full, outcomes["gained"][1], after(bed, changed))
        assert share.value == pytest.approx(lead(strength) / lead(4.0), rel=1e-5), nodes
