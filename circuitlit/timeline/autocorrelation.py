"""AR(1) noise about straight pieces: estimated from what a fit has left of it, and drawn."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

from circuitlit.timeline.pieces import Copies, Partition, Signals, pieces

HIGHEST = 0.9
ONE_SIDED = 1.645  # 95th percentile of the standard normal
COEFFICIENTS = np.linspace(0, HIGHEST, 91)
OfSignals = Float[np.ndarray, "signal"]


def ar1(residuals: Signals, points: Partition) -> tuple[OfSignals, OfSignals]:
    """AR(1) coefficient, in [0, 0.9], and variance of the noise of which each signal's residuals are left.

    Fitting lines takes autocorrelation out of residuals; both moments are therefore matched with what they are expected
    to be after the fit.
    """
    parts = [residuals[first:end] for first, end in pieces(points, len(residuals))]
    square = np.sum([(part**2).sum(0) for part in parts], 0)
    product = np.sum([(part[:-1] * part[1:]).sum(0) for part in parts], 0)
    return _matched(square, product, parts)


def pooled_ar1(residuals: Signals, points: Partition) -> tuple[float, float]:
    """The same of all signals together, which are of one scale."""
    parts = [residuals[first:end] for first, end in pieces(points, len(residuals))]
    square = np.sum([(part**2).sum() for part in parts], keepdims=True) / residuals.shape[1]
    product = np.sum([(part[:-1] * part[1:]).sum() for part in parts], keepdims=True) / residuals.shape[1]
    coefficient, variance = _matched(square, product, parts)
    return float(coefficient[0]), float(variance[0])


def _matched(square: OfSignals, product: OfSignals, parts: list[Signals]) -> tuple[OfSignals, OfSignals]:
    expected = sum((_moments(len(part)) for part in parts), np.zeros((2, len(COEFFICIENTS))))
    observed = np.divide(product, square, out=np.zeros_like(square), where=square > 0)
    place = np.abs(expected[1] / expected[0] - observed[:, None]).argmin(1)
    return COEFFICIENTS[place], square / expected[0, place]


@cache
def _moments(length: int) -> Float[np.ndarray, "2 coefficient"]:
    """Expected sums of squares and of neighbours' products of AR(1) noise of variance 1 about its fitted line."""
    time = np.arange(length)
    basis = np.linalg.qr(np.stack([np.ones(length), time], 1))[0]
    project = np.eye(length) - basis @ basis.T
    lag = np.abs(time[:, None] - time)
    powers = COEFFICIENTS[:, None] ** time
    # trace(P S P D) adds up, over lags, c^lag times the sum of P D P along that lag; D is the unit matrix or a shift
    inside = [project @ np.eye(length, k=step) @ project for step in (0, 1)]
    return np.stack([powers @ np.bincount(lag.ravel(), matrix.ravel(), length) for matrix in inside])


def draw_noise(coefficients: OfSignals, n: int, draws: int, seed: int = 0) -> Copies:
    """Gaussian AR(1) noise of variance 1; a coefficient of 1 gives a walk with steps of variance 1.

    Args:
        coefficients: of each signal.
        n: snapshots.
        draws: copies.
        seed: equal seeds give equal noise.
    """
    shocks = np.random.default_rng(seed).normal(size=(draws, n, len(coefficients)))
    shocks[:, 1:] *= np.where(coefficients < 1, np.sqrt(1 - coefficients**2), 1.0)
    for t in range(1, n):
        shocks[:, t] += coefficients * shocks[:, t - 1]
    return shocks


def highest(coefficients: OfSignals, freedom: int) -> OfSignals:
    """Upper end of the one-sided 95 % interval of AR(1) coefficients, no more than .9; that, too, where unsure.

    Args:
        coefficients: as estimated.
        freedom: snapshots less the numbers that were fitted to each signal.
    """
    if freedom < 2:
        return np.full_like(coefficients, HIGHEST)
    return np.minimum(HIGHEST, coefficients + ONE_SIDED * np.sqrt((1 - coefficients**2) / freedom))
