"""Is a boundary more than what runs without stages have? Their largest gains are the judge.

A hypothesis is a way in which runs without stages come about. It is drawn many times, and each draw is segmented in
the same way as the run. p of a boundary is the rank of its gain in the criterion among the draws' largest gains, so it
holds for all boundaries of a run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from circuitlit.evaluate.testing import LEVEL, rank_p
from circuitlit.timeline.autocorrelation import HIGHEST, draw_noise, highest
from circuitlit.timeline.segment import Segmentation, largest_gains

DRAWS = 199
FEW = 50  # snapshots, below which a walk cannot be told from noise by its coefficient
BEYOND, NOT_BEYOND, UNDECIDED = "beyond chance", "not beyond chance", "undecided"
Null = Callable[[Segmentation], Sequence[Float[np.ndarray, "draw"]]]  # the largest gains under one or two hypotheses


@dataclass(frozen=True)
class Chance:
    """What chance has to say to a boundary.

    Attributes:
        p: share of draws of the first hypothesis whose largest gain is no smaller, the run itself counted; in (0, 1].
        p_walk: the same of the second hypothesis, that a signal is a walk; None where there is none.
        draws: of each hypothesis.
        status: "beyond chance" where every p is at most .05, "not beyond chance" where the first is not, and
            "undecided" where only the second is not.
    """

    p: float
    p_walk: float | None
    draws: int
    status: str


def chances(parts: Segmentation, null: Null) -> list[Chance]:
    """One for each change point."""
    gains = null(parts)
    found = []
    for gain in parts.gains:
        p, *more = [rank_p(gain, own.tolist()) for own in gains]
        walk = more[0] if more else None
        status = NOT_BEYOND if p > LEVEL else UNDECIDED if walk is not None and walk > LEVEL else BEYOND
        found.append(Chance(p, walk, len(gains[0]), status))
    return found


def noise_or_walk(parts: Segmentation) -> list[Float[np.ndarray, "draw"]]:
    """Largest gains in noise, and in noise where the first signal, the level, is a walk.

    The noise is Gaussian AR(1) with the upper ends of the intervals of the coefficients about the fitted pieces. A
    signal whose interval reaches .9 may be a walk as well, and is one in the second hypothesis. With fewer than `FEW`
    snapshots a walk's coefficient may look too low for that, so there all signals walk.
    """
    n = len(parts.fitted)
    high = highest(parts.coefficients, n - 2 * (len(parts.change_points) + 1))
    high = np.minimum(HIGHEST, np.ceil(high * 20) / 20)  # so that series of one length share their draws
    walk = np.where((high >= HIGHEST) | (n < FEW), 1.0, high)
    walk[0] = 1.0
    return [_noise_gains(n, tuple(map(float, own))) for own in (high, walk)]


@lru_cache(64)
def _noise_gains(n: int, coefficients: tuple[float, ...]) -> Float[np.ndarray, "draw"]:
    return largest_gains(draw_noise(np.array(coefficients), n, DRAWS))
