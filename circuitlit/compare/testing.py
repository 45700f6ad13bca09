"""Tests on pairs, and their correction where many are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.stats import binomtest, spearmanr, ttest_1samp
from torch import Tensor


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that rejecting those up to alpha errs anywhere with a probability of at most alpha.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that of those up to q an expected share of at most q is false.

    Source: Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995).
    """
    order = sorted(range(len(p)), key=p.__getitem__, reverse=True)
    adjusted, smallest = [1.0] * len(p), 1.0
    for behind, place in enumerate(order):
        smallest = min(smallest, p[place] * len(p) / (len(p) - behind))
        adjusted[place] = smallest
    return adjusted


def paired_p(difference: Float[Tensor, "pair"]) -> float:
    """Two-sided p of a mean difference of 0 by Student's t; 1 where all pairs are equal."""
    values = difference.double()
    if len(values) < 2 or not bool(values.isfinite().all()) or bool((values == 0).all()):
        return 1.0
    if float(values.std()) == 0:
        return 0.0
    return float(ttest_1samp(values.numpy(), 0.0)[1])  # type: ignore[arg-type]


def above_chance(right: Float[Tensor, "pair"], chance: float) -> float:
    """One-sided p of more right answers than chance gives, by the binomial distribution."""
    return float(binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue)


def rank_p(value: float, random: Sequence[float]) -> float:
    """Share of random values at least as large, the value itself counted; in (0, 1]."""
    return (1 + sum(other >= value for other in random)) / (1 + len(random))


def monotonicity(doses: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's correlation of response with dose; 0 where nothing responds."""
    if len(set(values)) < 2:
        return 0.0
    return float(spearmanr(doses, values)[0])  # type: ignore[arg-type]


def slope(doses: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of response over dose."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (list(doses), list(values)))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
