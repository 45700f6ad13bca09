"""Change points of a few signals: exact optimal partition into straight pieces under autocorrelated noise.

Every piece has a straight line of its own in each signal, so both jumps and kinks are found, and no signal needs to be
smoothed first: a running mean delays what it smooths and makes white noise look like structure. The noise is estimated
from the finest partition, then from each partition chosen, until the choice stands. The criterion is BIC's with its
penalty times `PENALTY`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitlit.timeline.autocorrelation import OfSignals, ar1, pooled_ar1
from circuitlit.timeline.pieces import (
    SHORTEST,
    Copies,
    Partition,
    Signals,
    best_partitions,
    line_errors,
    lines,
    pieces,
)

PENALTY = 1.25  # frozen on synthetic runs: in fewer than 5 % of four white or AR(1) signals it sees a change point
ROUNDS = 5
AT_ONCE = 2**17  # pieces of all copies in one table, so that it stays in the cache
LEAST = 1e-6  # variance of the innovations, of signals of variance 1


@dataclass(frozen=True)
class Segmentation:
    """Where some signals change.

    Attributes:
        change_points: index of the first snapshot of every piece but the first.
        gains: by how much the criterion without its penalty grows when that change point is taken away and the pieces
            on its two sides become one.
        criterion: BIC-like criterion of the best partition into 1, 2 ... pieces, in units of 2 nats; less is better.
        fitted: the lines, in the signals' units.
        deviation: of the noise about the lines, for each signal in its unit.
        coefficient: AR(1) coefficient of that noise, one for all signals.
        coefficients: the same of each signal by itself.
    """

    change_points: Partition
    gains: tuple[float, ...]
    criterion: tuple[float, ...]
    fitted: Signals
    deviation: OfSignals
    coefficient: float
    coefficients: OfSignals

    def pieces(self) -> list[tuple[int, int]]:
        """First index and the one after the last of every piece."""
        return pieces(self.change_points, len(self.fitted))


def segment(signals: Signals) -> Segmentation:
    """Find the change points of finite values; signals are scaled to unit deviation, constant ones play no part."""
    if len(signals) < 2 * SHORTEST or not _spread(signals[None]).any():
        return partitioned(signals, (), (), (0.0,))
    (found,) = _choices(signals[None])
    return partitioned(signals, found.points, found.gains, found.criterion)


def partitioned(
    signals: Signals, points: Partition, gains: tuple[float, ...], criterion: tuple[float, ...]
) -> Segmentation:
    """The fit with these change points."""
    fitted = lines(signals, points)
    freedom = max(1, len(signals) - 2 * (len(points) + 1))
    residuals = signals - fitted
    deviation = np.sqrt((residuals**2).sum(0) / freedom)
    spread = _spread(signals[None])[0]
    pooled = pooled_ar1(residuals[:, spread > 0] / spread[spread > 0], points)[0] if spread.any() else 0.0
    return Segmentation(points, gains, criterion, fitted, deviation, pooled, ar1(residuals, points)[0])


def largest_gains(copies: Copies) -> Float[np.ndarray, "copy"]:
    """The largest gain of any change point that `segment` finds in each of many copies; 0 where it finds none."""
    at_once = max(1, AT_ONCE // copies.shape[1] ** 2)
    parts = (copies[first : first + at_once] for first in range(0, len(copies), at_once))
    return np.array([max(found.gains, default=0.0) for part in parts for found in _choices(part)])


@dataclass(frozen=True)
class _Choice:
    points: Partition
    gains: tuple[float, ...] = ()
    criterion: tuple[float, ...] = ()


def _spread(copies: Copies) -> Float[np.ndarray, "copy signal"]:
    """Deviation of each signal, 0 where it is constant."""
    spread = copies.std(1)
    return np.where(spread > 1e-9 * np.maximum(1, np.abs(copies).max(1)), spread, 0.0)


def _choices(copies: Copies) -> list[_Choice]:
    """What is chosen for each copy, all at once."""
    spread = _spread(copies)
    unit = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    scaled = (copies - copies.mean(1, keepdims=True)) * unit[:, None]
    finest = best_partitions(line_errors(scaled, np.zeros(1)))[1]
    chosen, active = [_Choice(own[-1]) for own in finest], list(range(len(copies)))
    for _ in range(ROUNDS):
        found = list(_chosen(scaled[active], [chosen[place].points for place in active]))
        moved = [place for place, new in zip(active, found, strict=True) if new.points != chosen[place].points]
        for place, new in zip(active, found, strict=True):
            chosen[place] = new
        active = moved
        if not active:
            break
    return chosen


def _chosen(scaled: Copies, before: list[Partition]) -> Iterator[_Choice]:
    """The partitions that are best under the noise that earlier ones leave."""
    n, width = scaled.shape[1:]
    noise = [pooled_ar1(own - lines(own, points), points) for own, points in zip(scaled, before, strict=True)]
    coefficient, variance = np.array(noise).T
    innovation = np.maximum(variance * (1 - coefficient**2), LEAST)
    errors = line_errors(scaled, coefficient) / innovation[:, None, None]
    costs, partitions = best_partitions(errors)
    per_piece = 2 * width + 1  # a line for every signal, and the place
    criteria = costs + PENALTY * (per_piece * np.arange(1, costs.shape[1] + 1) - 1) * np.log(n)
    for own, table, criterion in zip(partitions, errors, criteria, strict=True):
        points = own[int(criterion.argmin())]
        yield _Choice(points, _gains(table, points), tuple(map(float, criterion)))


def _gains(errors: Float[np.ndarray, "start end"], points: Partition) -> tuple[float, ...]:
    edges = [0, *points, len(errors) - 1]
    neighbours = zip(edges[:-2], points, edges[2:], strict=True)
    return tuple(float(errors[a, c] - errors[a, b] - errors[b, c]) for a, b, c in neighbours)
