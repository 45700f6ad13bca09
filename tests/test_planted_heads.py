"""Heads planted by hand: scores find them, ablating them undoes what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from conftest import tiny_batch, tiny_model
from planted import TOKENS, permutations, planted

from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.heads import (
    Effects,
    Heads,
    PatchBed,
    causal_check,
    copy_suppression_scores,
    copying_scores,
    effect_share,
    greater_than_check,
    heads_replaced,
    repeat_scores,
    successor_scores,
)
from circuitlit.heads.causal import matched_heads, metric_of_pairs, repeat_loss
from circuitlit.heads.copy_suppression import suppressed_part
from circuitlit.heads.year_check import year_check
from circuitlit.masked import run_writers
from circuitlit.model import Subject
from circuitlit.objective import task_metric
from circuitlit.tasks.pair import Batch


@pytest.fixture(scope="module")
def by_hand() -> Heads:
    return Heads(planted())


def test_planted_heads_that_look_back(by_hand: Heads) -> None:
    scores = repeat_scores(by_hand, permutations(16), TOKENS - 1, rows=5)
    for name, head in (("previous_token", (0, 0)), ("duplicate_token", (0, 1)), ("induction", (1, 0))):
        assert float(scores[name][head]) == pytest.approx(1, abs=1e-3)
    assert float(scores["duplicate_token"][1, 1]) == pytest.approx(0.5, abs=1e-3)  # itself and the first one
    for name, grid in scores.items():
        assert sorted(grid.flatten().tolist())[-2] <= (0.51 if name == "duplicate_token" else 0.2), name


def test_planted_heads_that_write(by_hand: Heads) -> None:
    ids = permutations(4)
    scores = copying_scores(by_hand, ids, torch.ones_like(ids, dtype=torch.bool))
    expected = torch.zeros(2, 3)
    assert torch.equal(scores["copying"], expected.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(1.0)))
    assert float(scores["negative_copying"][1, 1]) == float(scores["negative_copying"].sum()) == 1
    everything = [(list(range(TOKENS)), [(i, (i + 1) % TOKENS) for i in range(TOKENS)])]
    successor = successor_scores(by_hand, everything)
    assert float(successor[1, 2]) == 1 and float(successor.flatten()[:-1].max()) < 0.2
    assert bool(successor_scores(by_hand, []).isnan().all())


def test_planted_copy_suppression(by_hand: Heads) -> None:
    every = [(layer, head) for layer in range(2) for head in range(3)]
    scores = copy_suppression_scores(by_hand, permutations(8), every)
    assert float(scores[1, 1]) > 0.9
    assert float(scores.flatten()[[0, 1, 2, 3, 5]].abs().max()) < 0.05
    assert bool(copy_suppression_scores(by_hand, permutations(2), every[:1]).flatten()[1:].isnan().all())


def test_the_suppressed_part_by_hand() -> None:
    outputs = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])
    directions = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    assert torch.equal(suppressed_part(outputs, directions), torch.tensor([[[0.0, -2.0], [0.0, 0.0]]]))


def test_ablating_the_planted_induction_head_undoes_repetition(by_hand: Heads) -> None:
    subject, ids = by_hand.subject, permutations(16)
    generator = torch.Generator().manual_seed(1)
    fresh = torch.randint(TOKENS, ids.shape, generator=generator)
    for kind in ("interchange", "mean", "zero"):
        loss = repeat_loss(subject, ids, fresh, TOKENS - 1, kind)
        check = causal_check(loss, subject.graph, [(1, 0)], draws=8)  # five there are, one of which it needs
        assert check.effect.low > 0 and check.difference.low > 0 and check.rank_p <= 1 / 3  # five other heads
        assert check.intact.value == pytest.approx(float(loss(()).mean()))
        low, high = check.random.low, check.random.high
        assert low <= check.random.value <= high < check.effect.value
    assert not subject.model.transformer.h[1].attn.c_proj._forward_pre_hooks


def test_a_head_like_the_random_ones_is_seldom_significant() -> None:
    graph = Graph(1, 40, 40)
    others = [[(0, head)] for head in range(1, 40)]

    def p_value(seed: int, direction: Literal[-1, 1] | None, shift: float = 0.0) -> float:
        effects = torch.randn(40, generator=torch.Generator().manual_seed(seed))
        effects[0] += shift

        def behaviour(heads: Sequence[tuple[int, int]]) -> torch.Tensor:
            return torch.full((1,), float(sum(effects[head] for _, head in heads)))

        return causal_check(behaviour, graph, [(0, 0)], 39, sets=others, direction=direction).rank_p

    for direction in (None, -1):
        found = [p_value(seed, direction) for seed in range(120)]
        assert sum(p <= 0.05 for p in found) <= 13  # binomial: more than 13 of 120 has a chance below .004
    assert p_value(0, None, 9.0) == p_value(0, None, -9.0) == p_value(0, 1, 9.0) == p_value(0, -1, -9.0) == 1 / 40
    assert p_value(0, -1, 9.0) == p_value(0, 1, -9.0) == 1


def test_random_heads_are_of_the_same_layers_or_near_them() -> None:
    graph = Graph(5, 8, 8)
    heads = [(0, 1), (4, 0), (4, 3)]
    for drawn in matched_heads(graph, heads, 20, seed=0):
        assert sorted(layer for layer, _ in drawn) == [0, 4, 4] and not set(drawn) & set(heads)
    spared = [(4, h) for h in range(1, 7)]
    sets = matched_heads(graph, heads, 20, seed=0, spared=spared)
    for drawn in sets:  # the last layer has one left: the draws are of it and the layer before
        assert not set(drawn) & {*heads, *spared} and {layer for layer, _ in drawn[1:]} <= {3, 4}
    assert len({tuple(drawn) for drawn in sets}) > 10
    crowded = [(2, h) for h in range(7)]
    assert all(len(set(drawn)) == 7 for drawn in matched_heads(graph, crowded, 5, seed=0))
    spared = [(layer, h) for layer in range(5) for h in range(8) if (layer, h) not in ((0, 0), (4, 7))]
    assert matched_heads(graph, [(4, 7)], 2, seed=0, spared=spared) == [[(0, 0)]]  # however far away
    with pytest.raises(UserError, match=r"take fewer heads \(heads\.top, or knowledge\.top\)"):
        matched_heads(Graph(1, 4, 4), [(0, 0), (0, 1), (0, 2)], 1, seed=0)


def test_random_sets_differ_so_that_p_counts_none_twice() -> None:
    for size, heads, there in [
        ((30, 9, 9), [(5, 3)], 199),  # eight others in its layer
        ((30, 9, 9), [(5, 3), (8, 1), (8, 2)], 199),
        ((2, 4, 4), [(1, 0)], 7),  # all there are
        ((2, 4, 4), [(0, 0), (1, 0)], 15),
    ]:
        sets = matched_heads(Graph(*size), heads, 199, seed=0)
        assert len(sets) == len({tuple(one) for one in sets}) == there
    assert {layer for ((layer, _),) in matched_heads(Graph(30, 9, 9), [(5, 3)], 20, seed=0)} == {4, 5, 6}  # no further
    largest = causal_check(lambda heads: torch.full((1,), float((1, 0) in heads)), Graph(2, 4, 4), [(1, 0)], draws=199)
    assert (largest.rank_p, largest.draws) == (1 / 8, 7)


def test_ablating_all_heads_of_pairs_is_a_run_with_those_heads() -> None:
    subject, batch = Subject(tiny_model("gpt2")), tiny_batch()
    bed = PatchBed.build(subject, [batch])
    heads = [(1, 2), (2, 0)]
    source = run_writers(subject, batch.corrupted).heads.unflatten(-1, (4, -1))
    with heads_replaced(subject, {(i, h): source[:, i, :, h] for i, h in heads}):
        expected = task_metric(subject.logits(batch.clean, batch.positions), batch)
    torch.testing.assert_close(metric_of_pairs(bed, "interchange")(heads), expected)
    torch.testing.assert_close(metric_of_pairs(bed, "mean")(()), bed.metric)
    assert (metric_of_pairs(bed, "mean")(heads) - expected).abs().max() > 1e-3


def test_shares_by_hand() -> None:
    deltas = torch.tensor([[-2.0, -4.0], [1.0, 1.0], [0.5, -0.5], [-9.0, -9.0]])  # means -3, 1, 0, -9
    effects = Effects((5, 6, 7, 8), deltas, torch.ones(2), torch.arange(2))
    share = effect_share(effects, chosen=[5, 8], pool=[5, 6, 7])
    assert share.heads == 1 and share.share.value == pytest.approx(3 / 4)
    assert share.share.low is not None and share.share.low >= 2 / 3.5 - 1e-9  # only the first pair: 2 of 2 + 1 + .5
    assert share.random.value == pytest.approx(1 / 3, abs=0.05)
    assert (share.random.low, share.random.high) == pytest.approx((0, 0.75))
    assert effect_share(effects, [5, 6, 7], [5, 6, 7]).share.value == 1
    assert effect_share(effects, [], [5, 6]).share.value == 0


def test_greater_than_on_planted_heads(by_hand: Heads) -> None:
    subject = by_hand.subject
    clean = torch.tensor([[0, 3, 7, 1, 3], [0, 9, 4, 2, 9]])  # the induction head looks at 7 and at 4
    rest = {"contrast": torch.zeros(2).long(), "wrong": -torch.ones(2).long(), "roles": torch.zeros(2, 5).long()}
    batch = Batch(
        index=torch.arange(2),
        group=torch.arange(2),
        clean=clean,
        corrupted=clean,
        lengths=torch.tensor([5, 5]),
        positions=torch.tensor([[4], [4]]),
        answer=torch.tensor([[8], [5]]),
        answer_mask=torch.ones(2, 1, dtype=torch.bool),
        choices=torch.tensor([[8, 9, 10, 6, 7], [5, 6, 9, 4, 0]]),
        signs=torch.tensor([[1, 1, 1, -1, -1], [1, 1, 1, -1, 0]]),
        **rest,
    )
    year = torch.tensor([2, 2])
    found = greater_than_check(subject, batch, year, [(1, 0)], [0], draws=4)
    assert found.looks.value == found.says_year.value == 1
    assert greater_than_check(subject, batch, year, [(0, 0)], [0], draws=4).looks.value == 0
    logits = subject.unembed(subject.model.transformer.ln_f(run_writers(subject, clean).mlps[:, 0, 4]))
    first = logits[0, [8, 9, 10]].mean() - logits[0, [6, 7]].mean()
    second = logits[1, [5, 6, 9]].mean() - logits[1, 4]
    assert found.later.value == pytest.approx(float(first + second) / 2, rel=1e-5)
    batch.roles = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]])
    bed, roles, graph = PatchBed.build(subject, [batch]), ("other", "yy"), subject.graph
    kept = torch.zeros(1, graph.n_edges)
    kept[0, [graph.edge_index(name) for name in ("input->a0.h0<v>", "a0.h0->m0", "m0->logits")]] = 1
    circuit = Circuit.cut(EdgeScores(graph, kept, "hand"), 3)
    checked = year_check(bed, roles, circuit, 4, 0)
    assert checked is not None and (checked["heads"], checked["mlps"]) == (["a0.h0"], ["m0"])
    assert checked["looks"]["value"] == 0 and checked["later"]["value"] == pytest.approx(found.later.value)
    assert year_check(bed, ("other",), circuit, 4, 0) is None
    batch.choices[0, 4] = 5
    digits = year_check(PatchBed.build(subject, [batch]), roles, circuit, 4, 0)
    assert digits is not None and "splits years" in digits["reason"]
    other = replace(batch, choices=batch.choices[:, :0], signs=batch.signs[:, :0])  # somebody's own task
    for lacking in (other, replace(batch, roles=0 * batch.roles)):
        found_none = year_check(PatchBed.build(subject, [lacking]), roles, circuit, 4, 0)
        assert found_none is not None and "no token of the role 'yy', or no wrong years" in found_none["reason"]
    without = year_check(bed, roles, None, 4, 0)
    assert without is not None and "heads.circuit=RUN" in without["reason"]
    assert {digits["status"], without["status"]} == {"NOT MEASURABLE"} and checked["status"] == "OK"
    assert found.later.value > 0  # row 1 ends with 9, one of its later years, and the MLP passes the token on
