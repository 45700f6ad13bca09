"""What result files say of one model or circuit on some pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate, Function, mean_estimate, ratio_estimate, statistic
from circuitlit.objective import Outcome


@dataclass(frozen=True)
class PerPair:
    """How well single pairs are reproduced, which a mean hides.

    Attributes:
        distance: mean over pairs of |m(it) - m(full)|, as a share of the gap between the means of m(full) and
            m(corrupted); 0 is equal on every pair.
        correlation: of m(it) with m(full) over pairs; 1 is equal up to scale and shift; does not exist where either is
            constant.
    """

    distance: Estimate
    correlation: Estimate


@dataclass(frozen=True)
class Summary:
    """What `result.json` says of one model or circuit.

    Attributes:
        kl: KL(full || it), nats.
        faithfulness: (m(it) - m(corrupted)) / (m(full) - m(corrupted)) with m the mean of the task's metric (logit
            difference, probability difference or, without wrong answers, log-probability of the answer); 1 is the full
            model, 0 the corrupted run, values above 1 exist.
            Source: MIB (arXiv 2504.13151) section 3.
        faithfulness_raw: m(it) / m(full).
        accuracy: share of pairs on which it says the answer.
        exact_match: share of pairs on which it says what the full model says.
        logit_diff: mean logit of the answer minus the wrong answer; does not exist without wrong answers.
        prob_diff: mean probability of right minus wrong choices; does not exist without choices.
        log_prob: mean log-probability of the answer, nats.
        per_pair: how well single pairs are reproduced.
    """

    kl: Estimate
    faithfulness: Estimate
    faithfulness_raw: Estimate
    accuracy: Estimate
    exact_match: Estimate
    logit_diff: Estimate
    prob_diff: Estimate
    log_prob: Estimate
    per_pair: PerPair

    def to_dict(self) -> dict[str, dict]:
        """Plain types for result.json."""
        return asdict(self)


def summarise(outcomes: list[Outcome], full: Outcome, corrupted: Outcome, seed: int = 0) -> Summary:
    """Means over pairs, and over circuits where there are several, with both intervals.

    Pairs are resampled together for circuit, full model and corrupted run; of several circuits, circuits are resampled
    too, so the intervals speak for other random circuits (or seeds) as well.

    Args:
        outcomes: one circuit's, or those of several circuits on the same pairs.
        full, corrupted: on the same pairs or more; the first ones are used.
        seed: of the resampling.
    """
    count, groups = len(outcomes[0].kl), outcomes[0].group

    def stacked(name: str) -> Tensor:
        values = torch.stack([getattr(outcome, name) for outcome in outcomes]).double()
        return values if len(outcomes) > 1 else values[0]

    def mean(name: str) -> Estimate:
        return mean_estimate(stacked(name), groups, seed)

    def of(function: Function, *columns: Tensor) -> Estimate:
        return statistic(function, torch.stack([column.expand_as(own) for column in columns]), groups, seed).estimate()

    own = stacked("metric")
    top, bottom = full.metric[:count].double(), corrupted.metric[:count].double()
    products = (own, top.expand_as(own), own * own, top * top, own * top)
    return Summary(
        kl=mean("kl"),
        faithfulness=of(lambda m: (m[0] - m[2]) / (m[1] - m[2]), own, top, bottom),
        faithfulness_raw=ratio_estimate(own, top, groups, seed),
        accuracy=mean("accuracy"),
        exact_match=mean("exact_match"),
        logit_diff=mean("logit_diff"),
        prob_diff=mean("prob_diff"),
        log_prob=mean("log_prob"),
        per_pair=PerPair(
            distance=of(lambda m: m[0] / (m[1] - m[2]).abs(), (own - top).abs(), top, bottom),
            correlation=of(_correlation, *products),
        ),
    )


def _correlation(moments: Float[Tensor, "moment *rest"]) -> Float[Tensor, "*rest"]:
    """Pearson's correlation from the means of x, y, x x, y y and x y; NaN where one of them does not vary."""
    x, y, xx, yy, xy = moments
    spread = (xx - x * x).clamp(min=0) * (yy - y * y).clamp(min=0)
    varies = spread > 1e-20 * (xx * yy).clamp(min=1e-30)
    return torch.where(varies, (xy - x * y) / spread.sqrt().clamp(min=1e-30), torch.nan)
