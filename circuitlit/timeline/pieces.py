"""The best partitions of signals into straight pieces, for many copies of the signals at once.

All signals of a copy share their change points, and each has a line of its own in every piece. Lines are fitted by
generalised least squares for AR(1) noise.

Source: optimal partition by dynamic programming (Jackson et al., arXiv math/0309285; Killick et al., arXiv 1101.1438,
section 2).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float

SHORTEST = 3  # snapshots in a piece
MOST = 6  # pieces

Signals = Float[np.ndarray, "snapshot signal"]
Copies = Float[np.ndarray, "copy snapshot signal"]
Errors = Float[np.ndarray, "copy start end"]
Partition = tuple[int, ...]  # first index of every piece but the first


def pieces(points: Partition, n: int) -> list[tuple[int, int]]:
    """First index and the one after the last of every piece of `n` snapshots."""
    return list(pairwise([0, *points, n]))


def lines(values: Signals, points: Partition) -> Signals:
    """The straight lines through the pieces, by ordinary least squares."""
    fitted = np.empty_like(values)
    for first, end in pieces(points, len(values)):
        part = values[first:end]
        time = np.arange(end - first) - (end - first - 1) / 2
        fitted[first:end] = part.mean(0) + time[:, None] * (time @ part / max(time @ time, 1.0))
    return fitted


def line_errors(values: Copies, coefficient: Float[np.ndarray, "copy"]) -> Errors:
    """Squared error of the best lines through every piece [start, end), infinite for pieces that are too short.

    Errors are of whitened values, x_t - c x_(t-1) and sqrt(1 - c^2) x_t at a piece's start, in which AR(1) noise of
    coefficient c is independent; pieces are independent of each other. Running sums give all pieces at once.
    """
    n, c = values.shape[1], coefficient[:, None]
    size = np.arange(n + 1)[None] - np.arange(n + 1)[:, None]
    allowed = size >= SHORTEST
    level, time = _white(np.ones((1, n)), c), _white(np.arange(n)[None] - (n - 1) / 2, c)
    aa, ab, bb = _product(level, level), _product(level, time), _product(time, time)
    determinant = np.where(allowed, aa * bb - ab**2, 1.0)
    errors = np.zeros((len(values), n + 1, n + 1))
    for column in np.moveaxis(values, 2, 0):
        value = _white(column, c)
        av, bv = _product(level, value), _product(time, value)
        errors += _product(value, value) - (bb * av**2 - 2 * ab * av * bv + aa * bv**2) / determinant
    return np.where(allowed, np.maximum(errors, 0), np.inf)


def _white(column: Float[np.ndarray, "copy snapshot"], c: Float[np.ndarray, "copy 1"]) -> np.ndarray:
    """Whitened values inside a piece and, second, at its start."""
    inside = column - c * np.concatenate([np.zeros_like(column[:, :1]), column[:, :-1]], 1)
    return np.stack([inside, np.sqrt(1 - c**2) * column])


def _product(one: np.ndarray, other: np.ndarray) -> Errors:
    """Sums of products over every piece."""
    inside = one[0] * other[0]
    running = np.concatenate([np.zeros_like(inside[:, :1]), np.cumsum(inside, 1)], 1)
    before = running.copy()
    before[:, :-1] -= one[1] * other[1] - inside
    return running[:, None] - before[:, :, None]


def best_partitions(errors: Errors) -> tuple[Float[np.ndarray, "copy size"], list[list[Partition]]]:
    """Error and change points of each copy's best partition into 1, 2 ... pieces."""
    n = errors.shape[1] - 1
    best, came_from, rows = errors[:, 0], [], np.arange(len(errors))
    costs, found = [best[:, n]], [[()] for _ in rows]
    for _ in range(2, min(MOST, n // SHORTEST) + 1):
        totals = best[:, :, None] + errors
        came_from.append(totals.argmin(1))
        best = np.take_along_axis(totals, came_from[-1][:, None], 1)[:, 0]
        costs.append(best[:, n])
        at, points = np.full(len(errors), n), []
        for previous in reversed(came_from):
            at = previous[rows, at]
            points.append(at)
        for own, places in zip(found, np.stack(points[::-1], 1).tolist(), strict=True):
            own.append(tuple(places))
    return np.stack(costs, 1), found
