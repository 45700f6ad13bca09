"""Means with intervals, and faithfulness: means first, then the ratio."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.objective import Outcome

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval; all None where the quantity does not exist."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: Tensor, resampled: Float[Tensor, "resample"]) -> Estimate:
        """A statistic and its percentile interval over resamples."""
        if not bool(torch.isfinite(value)):
            return cls(None, None, None)
        low, high = torch.nanquantile(resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(float(value), low, high)

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None or math.isnan(self.value):
            return "-"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Summary:
    """What `result.json` says of one model or circuit.

    Attributes:
        kl: KL(full || it), nats.
        faithfulness: (m(it) - m(corrupted)) / (m(full) - m(corrupted)) with m the mean of the task's metric (logit
            difference, or probability difference); 1 is the full model, 0 the corrupted run, values above 1 exist.
            Source: MIB (arXiv 2504.13151) section 3.
        faithfulness_raw: m(it) / m(full).
        accuracy: share of pairs on which it says the answer.
        exact_match: share of pairs on which it says what the full model says.
        logit_diff: mean logit of the answer minus the wrong answer; does not exist without wrong answers.
        prob_diff: mean probability of right minus wrong choices; does not exist without choices.
    """

    kl: Estimate
    faithfulness: Estimate
    faithfulness_raw: Estimate
    accuracy: Estimate
    exact_match: Estimate
    logit_diff: Estimate
    prob_diff: Estimate

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Plain types for result.json."""
        return asdict(self)


def summarise(outcomes: list[Outcome], full: Outcome, corrupted: Outcome, seed: int = 0) -> Summary:
    """Means over pairs, and over circuits where there are several, with bootstrap intervals.

    Pairs are resampled together for circuit, full model and corrupted run; of several circuits, circuits are resampled
    too, so the interval speaks for other random circuits as well.

    Args:
        outcomes: one circuit's, or those of several circuits on the same pairs.
        full, corrupted: on the same pairs or more; the first ones are used.
        seed: of the resampling.
    """
    count = len(outcomes[0].kl)
    pairs, circuits = resamples(count, len(outcomes), seed)

    def stacked(name: str) -> Float[Tensor, "circuit pair"]:
        return torch.stack([getattr(outcome, name) for outcome in outcomes]).double()

    def resampled(values: Float[Tensor, "circuit pair"]) -> Float[Tensor, "resample"]:
        by_pair = values[circuits].mean(1) if len(outcomes) > 1 else values.expand(len(pairs), -1)
        return by_pair.gather(1, pairs).mean(1)

    def mean(name: str) -> Estimate:
        values = stacked(name)
        return Estimate.of(values.mean(), resampled(values))

    top, bottom = full.metric[None, :count].double(), corrupted.metric[None, :count].double()
    own = stacked("metric")
    own_b, top_b, bottom_b = resampled(own), top.expand(len(pairs), -1), bottom.expand(len(pairs), -1)
    top_b, bottom_b = top_b.gather(1, pairs).mean(1), bottom_b.gather(1, pairs).mean(1)
    return Summary(
        kl=mean("kl"),
        faithfulness=Estimate.of(
            (own.mean() - bottom.mean()) / (top.mean() - bottom.mean()), (own_b - bottom_b) / (top_b - bottom_b)
        ),
        faithfulness_raw=Estimate.of(own.mean() / top.mean(), own_b / top_b),
        accuracy=mean("accuracy"),
        exact_match=mean("exact_match"),
        logit_diff=mean("logit_diff"),
        prob_diff=mean("prob_diff"),
    )


def paired_difference(ours: Float[Tensor, "pair"], theirs: Float[Tensor, "pair"], seed: int = 0) -> Estimate:
    """Mean of `ours - theirs` over the same pairs."""
    pairs, _ = resamples(len(ours), 1, seed)
    difference = (ours - theirs).double()
    return Estimate.of(difference.mean(), difference[pairs].mean(1))


def average_ranks(values: Float[Tensor, "item"]) -> Float[Tensor, "item"]:
    """Ranks from 1, smallest first; equal values share the mean of their ranks."""
    _, place, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def resamples(
    pairs: int, circuits: int, seed: int
) -> tuple[Int[Tensor, "resample pair"], Int[Tensor, "resample circuit"]]:
    """Bootstrap draws of pairs, and of circuits, with replacement; equal seeds give equal draws."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(pairs, (RESAMPLES, pairs), generator=generator),
        torch.randint(circuits, (RESAMPLES, circuits), generator=generator),
    )
