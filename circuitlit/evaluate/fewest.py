"""The fewest edges that a ranking needs for a given KL, read off measured sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fewest_edges(kl_by_size: Sequence[tuple[int, float]], target: float) -> float | None:
    """Where the KL of a ranking's circuits first comes down to `target`, as circuits grow.

    Between two measured sizes the KL is taken to be linear in the logarithm of the size.

    Args:
        kl_by_size: edges kept and KL in nats, smallest size first.
        target: KL in nats.

    Returns:
        A number of edges, not always whole; None where no measured size reaches the target. The smallest measured size
        is the least there is: a ranking that is good enough there gets that size.
    """
    before: tuple[int, float] | None = None
    for size, kl in kl_by_size:
        if kl <= target:
            if before is None:
                return float(size)
            share = (before[1] - target) / (before[1] - kl)
            return math.exp(math.log(before[0]) + share * (math.log(size) - math.log(before[0])))
        before = size, kl
    return None
