"""Both intervals, and tests that know which pairs share a sentence."""

import math

import pytest
import torch
from scipy import stats

from circuitlit.evaluate.statistics import combined, mean_estimate, mean_of, paired_difference, ratio, statistic
from circuitlit.evaluate.summary import summarise
from circuitlit.evaluate.testing import above_chance, benjamini_hochberg, enough_draws, holm, paired_p, rank_p
from circuitlit.objective import Outcome


def by_sentence(groups: int, pairs: int, between: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of pairs whose sentences differ by `between`, and their sentences."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(groups).repeat_interleave(pairs)
    shift = torch.randn(groups, generator=generator, dtype=torch.float64) * between
    return shift[group] + torch.randn(groups * pairs, generator=generator, dtype=torch.float64), group


def test_one_pair_a_sentence_is_students_t() -> None:
    values = torch.tensor([0.3, 1.2, -0.4, 2.0, 0.9], dtype=torch.float64)
    interval = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    for groups in (None, torch.arange(5)):
        found = mean_estimate(values, groups)
        assert (found.low_sentences, found.high_sentences) == pytest.approx((interval.low, interval.high))
        assert paired_p(values, groups) == pytest.approx(stats.ttest_1samp(values.numpy(), 0).pvalue)


def test_equal_means_of_the_sentences_have_no_width() -> None:
    found = mean_estimate(torch.tensor([0.0, 2.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    assert found.low_sentences == found.value == found.high_sentences == 1.0
    assert found.low is not None and found.low < 1.0


def test_one_sentence_has_no_interval_for_others() -> None:
    found = mean_estimate(torch.rand(20), torch.zeros(20, dtype=torch.long))
    assert found.low is not None and found.low_sentences is None and found.high_sentences is None
    assert found.bounds == (found.low, found.high)
    assert paired_p(torch.ones(20), torch.zeros(20, dtype=torch.long)) == 1.0


def test_new_sentences_are_covered_where_pairs_alone_are_not() -> None:
    hits = {"pairs": 0, "sentences": 0}
    for seed in range(200):
        values, group = by_sentence(8, 25, 1.0, seed)
        found = mean_estimate(values, group)
        assert found.low is not None and found.high is not None
        assert found.low_sentences is not None and found.high_sentences is not None
        hits["pairs"] += found.low <= 0 <= found.high
        hits["sentences"] += found.low_sentences <= 0 <= found.high_sentences
    assert hits["pairs"] < 100 and hits["sentences"] >= 180


def test_paired_tests_do_not_count_pairs_of_one_sentence_as_evidence() -> None:
    false = {"alone": 0, "grouped": 0}
    for seed in range(200):
        values, group = by_sentence(8, 25, 1.0, seed)
        false["alone"] += paired_p(values, None) < 0.05
        false["grouped"] += paired_p(values, group) < 0.05
    assert false["alone"] > 60 and false["grouped"] <= 18


def test_seeds_enter_the_variance() -> None:
    group = torch.arange(10).repeat_interleave(4)
    alike = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = alike + torch.tensor([[-2.0], [0.0], [2.0]])
    one, other = mean_estimate(alike, group), mean_estimate(apart, group)
    for side in ("", "_sentences"):
        widths = [getattr(e, f"high{side}") - getattr(e, f"low{side}") for e in (one, other)]
        assert widths[1] > 2 * widths[0], side
    assert other.value == pytest.approx(one.value)


def test_a_ratio_by_hand_and_its_linear_case() -> None:
    above, below = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
    found, plain = ratio(above, below, None).estimate(), mean_estimate(above / 2, None)
    assert found.value == 1.0
    assert (found.low, found.low_sentences) == pytest.approx((plain.low, plain.low_sentences))


def test_combined_statistics_add_their_variances() -> None:
    parts = [
        statistic(lambda m: m[0], torch.randn(1, 30, generator=torch.Generator().manual_seed(s)), None, s)
        for s in (1, 2)
    ]
    whole = combined([(1.0, parts[0]), (-1.0, parts[1])])
    assert float(whole.value) == pytest.approx(float(parts[0].value - parts[1].value))
    assert sum(v for v, _ in whole.variances) == pytest.approx(sum(part.variances[0][0] for part in parts))


def test_a_mean_hides_what_single_pairs_do() -> None:
    top = torch.tensor([1.0, 2.0, 3.0, 4.0])
    own = top + torch.tensor([1.0, -1.0, 1.0, -1.0])
    zeros = torch.zeros(4)
    circuit, full, corrupted = (Outcome(zeros, v, zeros + torch.nan, zeros, zeros) for v in (own, top, zeros))
    found = summarise([circuit], full, corrupted)
    assert found.faithfulness.value == pytest.approx(1.0)
    assert found.per_pair.distance.value == pytest.approx(1 / 2.5)
    expected = torch.corrcoef(torch.stack([own, top]))[0, 1]
    assert found.per_pair.correlation.value == pytest.approx(float(expected), abs=1e-6)
    same = summarise([full], full, corrupted)
    assert (same.per_pair.distance.value, same.per_pair.correlation.value) == (0.0, pytest.approx(1.0))
    assert summarise([corrupted], full, corrupted).per_pair.correlation.value is None  # it is constant


def test_draws_enough_for_significance_after_correction() -> None:
    for claims in (1, 2, 18):
        draws = enough_draws(claims)
        assert max(holm([rank_p(1.0, [0.0] * draws)] * claims)) < 0.05
        assert max(holm([rank_p(1.0, [0.0] * (draws - 1))] * claims)) >= 0.05


def test_above_chance_knows_the_sentences() -> None:
    right = torch.tensor([1.0] * 10 + [0.0] * 10)
    assert above_chance(torch.ones(20), 0.5, None) == pytest.approx(0.5**20)
    assert above_chance(right, 0.1, None) < 1e-4
    assert above_chance(right, 0.1, torch.tensor([0] * 10 + [1] * 10)) > 0.05  # one sentence of two
    assert benjamini_hochberg([0.01, 0.04]) == pytest.approx([0.02, 0.04]) and benjamini_hochberg([]) == []


def test_differences_and_means_of_draws() -> None:
    found = paired_difference(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), None)
    assert (found.value, found.low, found.high, found.low_sentences) == (2.0, 2.0, 2.0, 2.0)
    assert mean_of([1.0, 3.0]).value == 2.0
    nothing = mean_estimate(torch.tensor([math.nan, 1.0]), None)
    assert set(nothing.to_dict().values()) == {None}
