"""Rows of the trust card without training: preserved, chance, minimal. By hand, and where the answer is planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_rivals import FIRST, edges_of, first_circuit, planted_rivals

from circuitlit import Circuit, EdgeScores, Method, Outcome, Pairs, UserError, eap_ig, evaluate_circuit
from circuitlit.discover import random_scores
from circuitlit.evaluate.find import prepare_bench
from circuitlit.evaluate.found import Measured
from circuitlit.evaluate.statistics import Estimate, statistic
from circuitlit.evaluate.trust.batch_scores import BatchScores
from circuitlit.evaluate.trust.chance import chance_rows
from circuitlit.evaluate.trust.claims import Claims, idle_share, measure_chance, measure_need, measure_preserved
from circuitlit.evaluate.trust.preserved import preserved_rows, tost_p, wins_p
from circuitlit.evaluate.trust.procedure import START
from circuitlit.evaluate.verdict import Bars, measure_circuit, verdict
from circuitlit.report.table import notes
from circuitlit.tasks.pair import LACKING


def outcome(metric: torch.Tensor, groups: int = 6) -> Outcome:
    nothing = torch.zeros(len(metric))
    unknown = torch.full((len(metric),), torch.nan)
    return Outcome(nothing, metric, unknown, nothing, nothing, torch.arange(len(metric)) % groups)


def test_the_full_model_is_preserved_and_half_of_it_is_not() -> None:
    full = outcome(2 + torch.rand(60, generator=torch.Generator().manual_seed(0)))
    corrupted = outcome(torch.zeros(60))
    rows = {row.name: row for row in preserved_rows(full, full, corrupted)}
    assert [rows[f"preserved.{name}"].state for name in ("faithfulness", "these_sentences", "wins")] == ["pass"] * 3
    assert rows["preserved.faithfulness"].value == pytest.approx(1) and rows["preserved.faithfulness"].p == 0
    assert rows["preserved.wins"].value == 0.5 and rows["preserved.wins"].p == 1
    half = {row.name: row for row in preserved_rows(outcome(full.metric / 2), full, corrupted)}
    assert half["preserved.faithfulness"].state == half["preserved.wins"].state == "fail"
    assert (half["preserved.faithfulness"].p or 0) > 0.999 and (half["preserved.wins"].p or 1) < 1e-6
    single = preserved_rows(outcome(full.metric, 1), outcome(full.metric, 1), outcome(corrupted.metric, 1))
    assert single[0].name == "preserved.faithfulness" and len(single) == 3
    alone = torch.where(torch.arange(60) % 6 == 0, full.metric, 0.0)  # without this sentence there is no behaviour
    rows = preserved_rows(outcome(alone), outcome(alone), corrupted)
    assert [row.name for row in rows[:2]] == ["preserved.faithfulness", "preserved.these_sentences"]
    assert [row.state for row in rows[:2]] == ["undecided", "pass"] and "new sentences" in rows[0].why


def test_pairs_without_the_metric_are_left_out_and_counted() -> None:
    """They are neither wins nor losses; where no pair has it, only the KL is left."""
    draw, absent = torch.Generator().manual_seed(0), torch.arange(60) % 2 == 1
    full = outcome(torch.where(absent, torch.nan, 2 + torch.rand(60, generator=draw)))
    corrupted = outcome(torch.where(absent, torch.nan, 0.0))
    rows = {row.name.removeprefix("preserved."): row for row in preserved_rows(full, full, corrupted)}
    assert [rows[name].state for name in ("faithfulness", "these_sentences", "wins")] == ["pass"] * 3
    assert rows["wins"].value == 0.5 and "30 of 60 pairs" in rows["wins"].figure and rows["kl"].pairs == 60
    assert [rows[name].pairs for name in ("faithfulness", "these_sentences", "wins")] == [30] * 3
    nothing = outcome(torch.full((60,), torch.nan))
    rows = preserved_rows(nothing, nothing, nothing)
    assert [row.state for row in rows] == ["not measured", "not measured", "shown"]
    assert rows[0].why == rows[1].why == "no pair has the task's metric"


def test_single_precision_does_not_win() -> None:
    """A circuit of all edges is the model, but for the last digit."""
    full = outcome(torch.cat([torch.linspace(0.1, 20.0, 30), torch.full((30,), -1e-3)]))
    noisy = outcome(full.metric * (1 + 3e-7) + 1e-6)
    wins = next(row for row in preserved_rows(noisy, full, outcome(torch.zeros(60))) if row.name == "preserved.wins")
    assert wins.value == 0.5 and wins.p == 1


def test_the_p_of_equivalence_is_that_of_its_interval() -> None:
    draw = torch.Generator().manual_seed(1)
    for shift in (0.0, 0.05, 0.08, 0.12):
        values = 1 + shift + 0.1 * torch.randn(48, generator=draw)
        found = statistic(lambda m: m[0], values[None], torch.arange(48) % 8)
        ends, p = found.estimate(0.9), tost_p(found, 1.0, 0.1)
        assert p is not None and ends.low_sentences is not None and ends.high_sentences is not None
        assert (p < 0.05) == (ends.low_sentences > 0.9 and ends.high_sentences < 1.1)


def test_wins_by_hand() -> None:
    """Ten pairs, eight wins: P(K <= 2) + P(K >= 8) of Bin(10, .6)."""
    assert wins_p(8, 10) == pytest.approx(0.012295 + 0.167290, abs=1e-5)
    assert wins_p(5, 10) == 1 and wins_p(2, 10) == wins_p(8, 10)


def test_chance_goes_by_the_corrected_rank() -> None:
    own = Measured(kl=Estimate(0.2, 0.1, 0.3))
    control = {"n_pairs": 16, "kl": Estimate(4.0, 3.0, 5.0)}
    few = chance_rows(
        own,
        {"random": Measured(p=1 / 21, p_holm=2 / 21, n_circuits=20, **control)}
        | {"shuffled": Measured(p=1 / 21, p_holm=2 / 21, n_circuits=20, **control)},
    )
    assert [row.state for row in few] == ["not measured"] * 2 and "cannot give" in few[0].why
    for p, state in ((0.02, "pass"), (0.2, "fail")):
        kinds = {kind: Measured(p=p, p_holm=p, n_circuits=99, **control) for kind in ("random", "shuffled")}
        assert [(row.name, row.state, row.p, row.draws) for row in chance_rows(own, kinds)] == [
            ("chance.random", state, p, 99),
            ("chance.shuffled", state, p, 99),
        ]


def test_needed_edges_that_too_few_draws_cannot_tell_are_allowed_for() -> None:
    ten = [1 / 101] * 10 + [0.5] * 118  # ten edges lose more than each of 100 random ones, and 26 would have to
    assert idle_share(ten, 100).value == 1 and 0.7 < (idle_share(ten, 100).low or 0) < 1 - 25 / 128
    assert idle_share([1 / 101] * 26 + [0.5] * 102, 100).value == 102 / 128
    enough = idle_share([1 / 2561] * 1 + [0.5] * 127, 2560)
    assert enough.value == 127 / 128 and idle_share([0.5] * 128, 2560).low == pytest.approx(0.9716, abs=1e-4)
    assert idle_share([1 / 21] * 3, 20).value == 0 and 0 < (idle_share([0.5] * 8, 20).low or 0) < 0.01


@pytest.mark.long
def test_idle_edges_are_those_that_were_not_planted() -> None:
    bench = planted_rivals("gpt2", "one", 0)
    graph, chain = bench.subject.graph, edges_of(bench, FIRST)
    idle = [
        edge
        for edge in range(graph.n_edges)
        if graph.edge_name(edge) in ("input->m0", "m0->m1", "m1->m2", "m2->logits")
    ]
    assert len(idle) == 4
    scores = torch.zeros(1, graph.n_edges)
    scores[0, [*chain, *idle]] = 1.0
    circuit = Circuit.cut(EdgeScores(graph, scores, "planted", kind="share"), 8)
    rows = {row.name: row for row in measure_need(bench, circuit, random=40, knockouts=2).claims}
    assert rows["minimal.idle"].value == 0.5 and rows["minimal.idle"].low and rows["minimal.idle"].low > 0.1
    assert (rows["minimal.complete"].value or 0) > 0.9 and rows["minimal.knockouts"].value is not None
    with pytest.raises(UserError, match="too few"):
        measure_need(bench, circuit, random=5)
    bench.data.test = replace(test := bench.data.test, rows=[test.rows[0]._replace(wrong=LACKING), *test.rows[1:]])
    for knockouts, why in ((1, "1 of 4 pairs do not have the task's metric"), (0, "no nodes were removed")):
        more = {"edges": 1, "random": 20, "knockouts": knockouts, "pairs": 4}
        rows = {row.name: row for row in measure_need(bench, circuit, **more).claims}
        assert rows["minimal.knockouts"].why == why and "1 of 4" in rows["minimal.complete"].why
    bench.data.test = test
    few = planted_rivals("gpt2", "one", 0, held_out=8)
    chance = measure_chance(few, circuit, draws=40)
    assert chance.claims[0].state == "pass" and [row.draws for row in chance.claims] == [40, 40]
    preserved = measure_preserved(bench, circuit, pairs=16)
    assert preserved.claims[0].pairs == 16 and len(preserved.to_frame()) == len(preserved.claims)
    assert Claims.from_dict(preserved.to_dict()) == preserved


@pytest.mark.long
def test_a_circuit_that_is_all_of_its_kind_is_not_compared() -> None:
    """A chain of four edges has no shuffles, and of all edges there is one set: chance has no p, and does not fail."""
    bench = planted_rivals("gpt2", "one", 0, held_out=16)
    chain = first_circuit(bench, "one")
    rows = measure_chance(bench, chain, draws=20).claims
    assert [(row.name, row.state) for row in rows] == [("chance.random", "pass"), ("chance.shuffled", "not measured")]
    assert rows[1].why == "no other circuit has these degrees, as far as 20 draws tell" and rows[1].p is None
    found = measure_circuit(bench, chain, bars=Bars(controls=20, published_pairs=0))
    assert found.status == "NOT MEASURABLE" and (found.reason or "").startswith("no other circuit has these degrees")
    assert found.random and found.shuffled and found.random.p_holm == found.random.p == 1 / 21
    assert found.shuffled.p is None and "KL below that of random ones: p = 0.048 (20 draws)." in notes(found.to_dict())
    whole = Circuit.cut(chain.scores, bench.subject.graph.n_edges)
    for draws, why in ((20, "no other circuit has this size, as far as 20 draws tell"), (2, "2 circuits cannot give")):
        rows = measure_chance(bench, whole, draws=draws).claims
        assert [row.state for row in rows] == ["not measured"] * 2 and why in rows[0].why
    kept = Bars(controls=20, published_pairs=0, max_kl_share=-1.0)
    assert verdict(found, kept)[0] == "FAILED"  # what does not go by chance is still judged


def test_shuffles_that_mostly_are_the_circuit_do_not_judge_it(local: Path) -> None:
    """Two edges have one other pair of these degrees: half of the shuffles are the circuit, however good it is."""
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench = prepare_bench(local / "model", Pairs.from_list(rows))
    graph, scores = bench.subject.graph, bench.score(Method.of(random_scores))
    kept = torch.zeros(1, graph.n_edges, dtype=torch.bool)
    kept[0, [graph.edge_index(edge) for edge in ("input->m0", "a0.h0->logits")]] = True
    circuit = Circuit.of(scores, kept)
    bars = Bars(controls=40, published_pairs=0, max_kl_share=1000.0)
    found = measure_circuit(bench, circuit, bars=bars)
    assert found.shuffled and found.shuffled.n_alike and 10 < found.shuffled.n_alike < 30 and found.shuffled.p is None
    assert found.random and found.random.n_alike is None and found.random.p == found.random.p_holm
    for settings, said in (
        ({"curve_pairs": -1}, "curve_pairs=-1 is below 0"),
        ({"knockouts": -1}, "knockouts=-1 is below 0"),
        ({"parts": -1}, "parts=-1 is below 0"),
        ({"ablation_pairs": 0}, "ablation_pairs=0 is below 1"),
        ({"smallest": float("nan")}, "smallest=nan is no faithfulness"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_circuit(bench, circuit, bars=bars, **settings)


def test_halves_of_batches_cost_no_further_pass() -> None:
    bench = replace(planted_rivals("gpt2", "one", 0), count=4)
    parts = BatchScores.of(bench, START)
    whole = bench.score(parts.method)
    assert torch.equal(whole.values, bench.score(START).values) and len(parts.scores) == 8
    torch.testing.assert_close(
        torch.stack(parts.scores).sum(0) / sum(parts.weights), whole.values, rtol=1e-4, atol=1e-7
    )
    core, alike = parts.rows(bench, whole, 0)
    assert core.name == "stable.attribution_core" and core.draws == alike.draws == 50
    assert core.value == 4 and alike.value == 1  # the planted chain, whatever the half
    assert BatchScores.of(bench, Method.of(eap_ig)).rows(bench, whole, 0) == []
