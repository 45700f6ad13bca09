"""Means, ratios and other smooth functions of means, each with two 95 % intervals. All bootstraps are here.

*These sentences*: pairs are resampled, so the interval speaks for other pairs of the same sentences (or facts, operands
...). *New sentences*: pairs that share a sentence are one observation, so the interval speaks for other sentences; it
is Student's t on the groups' means with one degree of freedom less than there are groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from scipy.stats import t as student
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
INTERVALS = ("value", "low", "high", "low_sentences", "high_sentences")
Groups = Int[Tensor, "pair"] | None  # which pairs share a sentence; None where every pair stands alone
Function = Callable[[Float[Tensor, "column *rest"]], Float[Tensor, "*rest"]]


@dataclass(frozen=True)
class Estimate:
    """A value with its two 95 % intervals; all None where the quantity does not exist.

    Attributes:
        value: the statistic on all pairs.
        low, high: other pairs of these sentences (pairs resampled).
        low_sentences, high_sentences: new sentences (t on the groups' means); None with fewer than two groups.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    low_sentences: float | None = None
    high_sentences: float | None = None

    @classmethod
    def of(cls, value: Tensor, resampled: Float[Tensor, "resample"]) -> Estimate:
        """A statistic of something other than pairs (circuits, say), with the percentile interval of its resamples."""
        return Statistic(value, resampled, math.nan, ()).estimate()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval that a verdict goes by: new sentences where there are several groups, else these sentences."""
        if self.low_sentences is not None and self.high_sentences is not None:
            return self.low_sentences, self.high_sentences
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def agrees(self) -> bool:
        """Whether the value has the sign of the interval's middle: large sentences can pull the mean of pairs away."""
        return self.value is not None and self.bounds is not None and self.value * sum(self.bounds) > 0

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None or math.isnan(self.value):
            return "-"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float | None]:
        """Plain types for result files."""
        return asdict(self)


@dataclass(frozen=True)
class Statistic:
    """A value with what its intervals are made of, so that statistics of independent samples can be combined.

    Attributes:
        value: on all pairs.
        resampled: on resamples of the pairs.
        centre: middle of the interval for new sentences: all groups weigh the same.
        variances: variance of the centre and its degrees of freedom, from each source: groups of pairs, and circuits,
            seeds or random sets where there are several. Empty with fewer than two groups.
    """

    value: Float[Tensor, ""]
    resampled: Float[Tensor, "resample"]
    centre: float
    variances: tuple[tuple[float, int], ...]

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The value with both intervals, of a probability of `level`."""
        if not bool(torch.isfinite(self.value)):
            return Estimate()
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.nanquantile(self.resampled.double(), tails).tolist()
        half = _half_width(self.variances, level)
        known = half is not None and math.isfinite(half) and math.isfinite(self.centre)
        sentences = (self.centre - half, self.centre + half) if known and half is not None else (None, None)
        return Estimate(float(self.value), low, high, *sentences)


def combined(parts: Sequence[tuple[float, Statistic]]) -> Statistic:
    """A weighted sum of statistics of independent samples (other tasks, say)."""
    sourced = [[(weight**2 * variance, dof) for variance, dof in part.variances] for weight, part in parts]
    return Statistic(
        torch.stack([weight * part.value for weight, part in parts]).sum(),
        torch.stack([weight * part.resampled for weight, part in parts]).sum(0),
        sum(weight * part.centre for weight, part in parts),
        tuple(source for sources in sourced for source in sources) if all(sourced) else (),
    )


def statistic(
    function: Function,
    columns: Float[Tensor, "column *draw pair"],
    groups: Groups,
    seed: int = 0,
    strata: Int[Tensor, "pair"] | None = None,
) -> Statistic:
    """A function of the means of some columns of per-pair numbers.

    With several draws (circuits, seeds, random sets) the means run over draws and pairs, both are resampled, and both
    enter the variance for new sentences.

    Args:
        function: smooth, from the columns' means to the statistic; it is also given many sets of means at once, as
            further axes.
        columns: numbers of each pair, of each draw where there are several.
        groups: which pairs share a sentence; None where every pair stands alone.
        seed: of the resampling; statistics of independent samples take different ones.
        strata: kinds of pairs (the model's right and wrong answers, say) whose numbers every resample keeps; None
            resamples all pairs together.

    Source: t on group means, Ibragimov and Muller, Journal of Business & Economic Statistics 28 (2010): conservative
    at 5 % where the groups' variances differ. For functions that are not linear the groups' means are jackknife
    pseudo-values, which are the group means themselves where the function is linear.
    """
    values = columns.double().unsqueeze(1) if columns.dim() == 2 else columns.double()
    draws, pairs = values.shape[1:]
    weights = pair_weights(pairs, seed) if strata is None else _stratified_weights(strata, seed)
    by_pair = values.mean(1)
    if draws == 1:
        resampled = by_pair @ weights.T
    else:
        drawn = pair_weights(draws, seed + 1)
        resampled = torch.stack([((drawn @ column) * weights).sum(-1) for column in values])
    by_group = group_means(values, groups)  # column draw group
    pseudo = _pseudo_values(function, by_group.mean(1))
    sources = [pseudo] if draws == 1 else [pseudo, _pseudo_values(function, by_group.mean(2))]
    variances = tuple((float(source.var()) / len(source), len(source) - 1) for source in sources if len(source) > 1)
    return Statistic(
        function(by_pair.mean(1)),
        function(resampled),
        float(function(by_group.mean((1, 2)))),
        variances if len(pseudo) > 1 else (),
    )


def mean_estimate(values: Float[Tensor, "*draw pair"], groups: Groups, seed: int = 0, together: int = 1) -> Estimate:
    """Mean over pairs, and over draws where there are several; of `together` means all intervals hold at once."""
    level = 1 - (1 - LEVEL) / together  # Bonferroni
    return statistic(lambda means: means[0], values[None], groups, seed).estimate(level)


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean of numbers that stand alone: those of random sets, say."""
    return mean_estimate(torch.tensor(values), None)


def mean_of_halves(values: Sequence[float], groups: int) -> Estimate:
    """Mean of figures of random halves of some groups of pairs: sentences, say.

    The interval of these sentences is for other halves. The spread of such figures is that of a figure of all groups
    between draws of new ones, so that for new sentences it does not shrink with the number of halves.

    Args:
        values: one of each half, at least two.
        groups: that were halved.

    Source: McCarthy, Review of the International Statistical Institute 37 (1969); deleting half, Shao and Wu, Annals
    of Statistics 17 (1989).
    """
    found, spread = mean_of(values), float(torch.tensor(values, dtype=torch.float64).std())
    half = _half_width([(spread**2, min(len(values), groups) - 1)], LEVEL)
    assert found.value is not None and half is not None
    return replace(found, low_sentences=found.value - half, high_sentences=found.value + half)


def ratio_estimate(
    above: Float[Tensor, "*draw pair"], below: Float[Tensor, "pair"], groups: Groups, seed: int = 0
) -> Estimate:
    """Mean of `above` over mean of `below`, pairs drawn together."""
    return ratio(above, below, groups, seed).estimate()


def ratio(above: Float[Tensor, "*draw pair"], below: Float[Tensor, "pair"], groups: Groups, seed: int = 0) -> Statistic:
    """As `ratio_estimate`, to be combined further."""
    columns = torch.stack([above.double(), below.double().expand_as(above)])
    return statistic(lambda means: means[0] / means[1], columns, groups, seed)


def paired_difference(
    ours: Float[Tensor, "pair"], theirs: Float[Tensor, "pair"], groups: Groups, seed: int = 0
) -> Estimate:
    """Mean of `ours - theirs` over the same pairs."""
    return mean_estimate(ours.double() - theirs.double(), groups, seed)


def group_means(values: Float[Tensor, "*rest pair"], groups: Groups) -> Float[Tensor, "*rest group"]:
    """Mean over the pairs of each group, groups in the order of their numbers."""
    if groups is None:
        return values.double()
    _, place, counts = groups.unique(sorted=True, return_inverse=True, return_counts=True)
    sums = values.new_zeros((*values.shape[:-1], len(counts)), dtype=torch.float64)
    return sums.index_add_(-1, place, values.double()) / counts


@lru_cache(16)
def pair_weights(pairs: int, seed: int) -> Float[Tensor, "resample pair"]:
    """Each resample's weights of the pairs, which sum to 1: draws with replacement; equal seeds give equal weights."""
    drawn = torch.randint(pairs, (RESAMPLES, pairs), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(RESAMPLES, pairs, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / pairs


def _stratified_weights(strata: Int[Tensor, "pair"], seed: int) -> Float[Tensor, "resample pair"]:
    """As `pair_weights`, with the pairs of each stratum drawn among themselves."""
    weights = torch.zeros(RESAMPLES, len(strata), dtype=torch.float64)
    for number, stratum in enumerate(strata.unique()):
        own = (strata == stratum).nonzero()[:, 0]
        weights[:, own] = pair_weights(len(own), seed + number) * len(own) / len(strata)
    return weights


def mean_of_others(values: Float[Tensor, "one two"], drawn: Int[Tensor, "draw item"]) -> Float[Tensor, "draw"]:
    """Mean over every two different items of each draw, such as two circuits; NaN for a draw that holds only one.

    Args:
        values: of every two items.
        drawn: numbers of the items, of `drawn_items`.
    """
    chosen = values[drawn[:, :, None], drawn[:, None, :]]
    return torch.where(drawn[:, :, None] != drawn[:, None, :], chosen, torch.nan).nanmean((1, 2))


def drawn_items(count: int, seed: int) -> Int[Tensor, "draw item"]:
    """All items in order, then draws with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.arange(count)[None], torch.randint(count, (RESAMPLES, count), generator=generator)])


def average_ranks(values: Float[Tensor, "item"]) -> Float[Tensor, "item"]:
    """Ranks from 1, smallest first; equal values share the mean of their ranks."""
    _, place, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def _pseudo_values(function: Function, means: Float[Tensor, "column group"]) -> Float[Tensor, "group"]:
    """Jackknife pseudo-values of the groups; a single group gives one."""
    count = means.shape[1]
    whole = function(means.mean(1))
    if count == 1:
        return whole.reshape(1)
    without = (means.sum(1, keepdim=True) - means) / (count - 1)
    return count * whole - (count - 1) * function(without)


def _half_width(variances: Sequence[tuple[float, int]], level: float) -> float | None:
    """Half of an interval by Student's t, with Satterthwaite's degrees of freedom for a sum of variances."""
    if not variances:
        return None
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    dof = total**2 / sum(variance**2 / own for variance, own in variances)
    return float(student.ppf((1 + level) / 2, dof)) * math.sqrt(total)
