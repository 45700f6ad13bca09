"""Metrics and intervals against hand-computed values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch, tiny_model

from circuitlit.evaluate import TestBed, paired_difference, summarise
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.objective import (
    Outcome,
    kl_divergence,
    log_probability,
    logit_difference,
    probability_difference,
    says,
    says_answer,
    task_metric,
)
from circuitlit.tasks.pair import ALONE, LACKING, Batch


def two_token_batch() -> Batch:
    batch = tiny_batch(rows=2, answers=2)
    batch.answer = torch.tensor([[0, 1], [2, 0]])
    batch.answer_mask = torch.tensor([[True, True], [True, False]])
    batch.contrast = torch.tensor([1, 0])
    batch.wrong = torch.tensor([2, LACKING])
    return batch


def test_kl_by_hand() -> None:
    """Three tokens; the teacher is (1/2, 1/4, 1/4), the circuit uniform: KL = log 3 - 1.5 log 2."""
    batch = two_token_batch()
    teacher = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, 2, 3)
    logits = torch.zeros(2, 2, 3)
    logits[1, 1] = torch.tensor([9.0, 0, 0])  # a position that does not count
    expected = math.log(3) - 1.5 * math.log(2)
    torch.testing.assert_close(kl_divergence(logits, teacher, batch), torch.tensor([expected, expected]))


def test_kl_averages_over_an_answers_tokens() -> None:
    batch = two_token_batch()
    teacher = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, 2, 3).clone()
    logits = torch.zeros(2, 2, 3)
    logits[0, 0] = teacher[0, 0]
    expected = (math.log(3) - 1.5 * math.log(2)) / 2
    assert float(kl_divergence(logits, teacher, batch)[0]) == pytest.approx(expected, abs=1e-6)


def test_logit_difference_looks_where_the_answers_differ() -> None:
    logits = torch.zeros(2, 2, 3)
    logits[0, 1] = torch.tensor([5.0, 3.0, 1.0])
    difference = logit_difference(logits, two_token_batch())
    assert float(difference[0]) == 2.0
    assert math.isnan(float(difference[1]))


def test_accuracy_wants_every_token_of_the_answer() -> None:
    batch = two_token_batch()
    logits = torch.zeros(2, 2, 3)
    logits[0, 0, 0] = logits[0, 1, 2] = logits[1, 0, 2] = 1
    assert says_answer(logits, batch).tolist() == [False, True]
    logits[0, 1, 1] = 2
    assert says_answer(logits, batch).tolist() == [True, True]
    assert says(logits, torch.tensor([[0, 0], [2, 2]]), batch.answer_mask).tolist() == [False, True]


def test_probability_difference_sums_signed_choices() -> None:
    batch = replace(two_token_batch(), choices=torch.tensor([[0, 1], [0, 0]]), signs=torch.tensor([[1, -1], [0, 0]]))
    logits = torch.zeros(2, 2, 3)
    logits[0, 0] = torch.tensor([0.7, 0.2, 0.1]).log()
    expected = torch.tensor([0.5, torch.nan])
    torch.testing.assert_close(probability_difference(logits, batch), expected, equal_nan=True)
    own = task_metric(logits, batch)
    assert float(own[0]) == pytest.approx(0.5)
    torch.testing.assert_close(own[1], logit_difference(logits, batch)[1], equal_nan=True)
    assert bool(says_answer(logits, batch)[0])  # token 0 is a right choice


def test_a_pairs_metric_does_not_depend_on_its_batch() -> None:
    """Where only some have a wrong answer, the others have no metric; where none has, it is a log-probability."""
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    batch = two_token_batch()

    def alone(row: int, batch: Batch) -> torch.Tensor:
        part = Batch(**{name: value[row : row + 1] for name, value in vars(batch).items()})
        found = task_metric(logits[row : row + 1], part)
        outcome = Outcome.of(logits[row : row + 1], logits[row : row + 1].log_softmax(-1), part)
        torch.testing.assert_close(outcome.metric, found, equal_nan=True)
        return found

    for wrong in ([2, LACKING], [ALONE, ALONE]):
        batch.wrong = torch.tensor(wrong)
        whole, outcome = task_metric(logits, batch), Outcome.of(logits, logits.log_softmax(-1), batch)
        torch.testing.assert_close(whole, torch.cat([alone(row, batch) for row in (0, 1)]), equal_nan=True)
        torch.testing.assert_close(whole, outcome.metric, equal_nan=True)
        torch.testing.assert_close(whole[1:], outcome.rows(slice(1, 2)).metric, equal_nan=True)
        assert bool(whole[1].isnan()) == (LACKING in wrong) and int(outcome.said.min()) >= -1
    torch.testing.assert_close(whole, log_probability(logits, batch))


def outcome(logit_diff: list[float], kl: list[float] | None = None) -> Outcome:
    values = torch.tensor(logit_diff)
    zeros = torch.zeros_like(values)
    return Outcome(torch.tensor(kl) if kl else zeros, values, zeros + torch.nan, zeros, zeros)


def test_faithfulness_takes_means_first() -> None:
    summary = summarise([outcome([2.0, 4.0])], outcome([4.0, 8.0]), outcome([0.0, 2.0]))
    assert summary.faithfulness.value == pytest.approx((3 - 1) / (6 - 1))
    assert summary.faithfulness_raw.value == pytest.approx(0.5)


def test_intervals_hold_the_value_and_shrink_with_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = []
    for count in (20, 2000):
        kl = torch.rand(count, generator=generator).tolist()
        summary = summarise([outcome([1.0] * count, kl)], outcome([2.0] * count), outcome([0.0] * count))
        assert summary.kl.low is not None and summary.kl.high is not None and summary.kl.value is not None
        assert summary.kl.low < summary.kl.value < summary.kl.high
        widths.append(summary.kl.high - summary.kl.low)
    assert widths[1] == pytest.approx(2 * 1.96 * (1 / 12) ** 0.5 / 2000**0.5, rel=0.15)
    assert widths[1] < widths[0] / 5


def test_several_circuits_are_resampled_too() -> None:
    flat = [outcome([1.0] * 50, [value] * 50) for value in (0.0, 1.0, 2.0, 3.0)]
    summary = summarise(flat, outcome([2.0] * 50), outcome([0.0] * 50))
    assert summary.kl.value == 1.5
    assert summary.kl.low is not None and summary.kl.low < 1.0


def test_no_wrong_answer_means_no_faithfulness() -> None:
    nothing = outcome([math.nan] * 4, [1.0] * 4)
    summary = summarise([nothing], nothing, nothing)
    assert summary.faithfulness.value is None and summary.logit_diff.value is None
    assert summary.kl.value == 1.0


def test_paired_difference_by_hand() -> None:
    difference = paired_difference(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), None)
    assert (difference.value, difference.low, difference.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("kind", ["interchange", "zero"])
def test_bed_knows_both_ends(kind) -> None:
    subject = Subject(tiny_model("gpt_neox"))
    batches = [tiny_batch(rows=3, seed=seed) for seed in range(2)]
    bed = TestBed.build(MaskedModel(subject), References(subject, kind), batches)
    everything = torch.ones(1, subject.graph.n_edges, dtype=torch.bool)
    full, nothing = bed.run(everything), bed.run(~everything)
    torch.testing.assert_close(full.kl, torch.zeros(6), atol=1e-6, rtol=0)
    assert bool((full.exact_match == 1).all()) and bool((bed.full.exact_match == 1).all())
    torch.testing.assert_close(full.logit_diff, bed.full.logit_diff)
    torch.testing.assert_close(nothing.kl, bed.corrupted.kl)
    torch.testing.assert_close(nothing.logit_diff, bed.corrupted.logit_diff)
    assert len(bed.run(everything, pairs=4).kl) == 4
