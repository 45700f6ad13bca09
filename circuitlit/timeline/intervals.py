"""Where change points may lie: a bootstrap of the noise about the fitted pieces."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from circuitlit.timeline.autocorrelation import pooled_ar1
from circuitlit.timeline.pieces import SHORTEST, Copies, Signals
from circuitlit.timeline.segment import Segmentation


def intervals(signals: Signals, parts: Segmentation, resamples: int, seed: int = 0) -> tuple[tuple[int, int], ...]:
    """95 % interval of each change point, as indices, its neighbours held; of no width without resamples."""
    points = parts.change_points
    if not points or not resamples:
        return tuple((place, place) for place in points)
    spread = signals.std(0)
    scaled, fitted = (values[:, spread > 0] / spread[spread > 0] for values in (signals, parts.fitted))
    coefficient, _ = pooled_ar1(scaled - fitted, points)
    copies = fitted + _redrawn(scaled - fitted, resamples, seed)
    edges, found = [0, *points, len(signals)], []
    for before, place, after in zip(edges[:-2], points, edges[2:], strict=True):
        part = np.moveaxis(copies[:, before:after], 0, 1)
        cuts = np.arange(SHORTEST, after - before - SHORTEST + 1)
        errors = [_error(part[:cut], coefficient) + _error(part[cut:], coefficient) for cut in cuts]
        places = before + cuts[np.argmin(errors, 0)]
        low, high = np.percentile(places, [2.5, 97.5], method="nearest")
        found.append((min(int(low), place), max(int(high), place)))
    return tuple(found)


def _redrawn(residuals: Signals, resamples: int, seed: int) -> Copies:
    """The residuals put together anew from blocks."""
    n = len(residuals)
    block = round(2 * n ** (1 / 3))
    starts = np.random.default_rng(seed).integers(n, size=(resamples, -(-n // block)))
    return residuals[(starts[..., None] + np.arange(block)).reshape(resamples, -1)[:, :n] % n]


def _error(part: Float[np.ndarray, "snapshot resample signal"], coefficient: float) -> Float[np.ndarray, "resample"]:
    """Squared error, after whitening, of the best lines through each copy of a piece."""
    n, copies, _ = part.shape
    basis = np.linalg.qr(_whitened(np.stack([np.ones(n), np.arange(n)], 1), coefficient))[0]
    white = _whitened(part.reshape(n, -1), coefficient)
    error = np.einsum("tc,tc->c", white, white) - ((basis.T @ white) ** 2).sum(0)
    return error.reshape(copies, -1).sum(1)


def _whitened(values: Signals, coefficient: float) -> Signals:
    first = np.sqrt(1 - coefficient**2) * values[:1]
    return np.concatenate([first, values[1:] - coefficient * values[:-1]])
