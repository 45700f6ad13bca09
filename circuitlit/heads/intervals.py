"""Bootstrap over pairs for means, ratios of means and shares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.evaluate.statistics import RESAMPLES, Estimate


def resampled_means(values: Float[Tensor, "*rows pair"], seed: int = 0) -> Float[Tensor, "*rows resample"]:
    """Means over pairs drawn anew with replacement; rows of equal seed and length share their draws."""
    count = values.shape[-1]
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(RESAMPLES, count, dtype=torch.float64)
    )
    return values.double() @ weights.t() / count


def mean_estimate(values: Float[Tensor, "pair"]) -> Estimate:
    """Mean over pairs."""
    return Estimate.of(values.double().mean(), resampled_means(values))


def ratio_estimate(above: Float[Tensor, "pair"], below: Float[Tensor, "pair"]) -> Estimate:
    """Mean of `above` over mean of `below`, pairs drawn together."""
    value = above.double().mean() / below.double().mean()
    return Estimate.of(value, resampled_means(above) / resampled_means(below))


def draws_estimate(values: Float[Tensor, "draw pair"], seed: int = 0) -> Estimate:
    """Mean over draws (random sets of heads) and pairs; draws and pairs are both resampled."""
    means = resampled_means(values)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(seed + 1))
    return Estimate.of(values.double().mean(), means.t().gather(1, rows).mean(1))
