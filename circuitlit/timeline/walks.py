"""Mask runs that learn nothing: a run's own steps, every edge's with random signs, from the run's own start.

Signs make a walk of each log-alpha: whatever moved the masks has no direction any more, but every step keeps its size,
so warm-up, decay of the learning rate and shrinking noise are as they were. The shift that holds the size is the same
for all edges and changes no ranking; it is taken out before the signs (as the mean of each step) and plays no part.

Adam remembers about ten steps, so that even a gradient without direction moves a mask the same way for some time. One
sign therefore holds for `MEMORY` steps, and steps are made longer by what a change of sign takes from a walk
(`_stretch`). Edges get signs of their own: noise that many edges share is not in the null.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from circuitlit.evaluate.similarity import corrected_overlap

MOMENTUM = 0.9  # Adam's
MEMORY = 20  # training steps, twice what Adam remembers
Values = Float[np.ndarray, "snapshot mask"]
Kept = Bool[np.ndarray, "mask"]
Curve = Float[np.ndarray, "snapshot"]


def best_edges(log_alpha: Float[np.ndarray, "mask"], count: int) -> tuple[Kept, bool]:
    """The `count` masks of largest log-alpha, and whether they were free of ties.

    Of masks that tie for the last places some are drawn, always the same: those that start equal are a random set.
    """
    log_alpha = np.nan_to_num(log_alpha, nan=-np.inf)  # a run that went wrong is stopped elsewhere
    threshold = _threshold(log_alpha, count)
    kept = log_alpha > threshold
    missing = count - int(np.count_nonzero(kept))
    tied = np.flatnonzero(log_alpha == threshold)
    if missing == len(tied):
        kept[tied] = True
        return kept, True
    kept[np.random.default_rng(0).choice(tied, missing, replace=False)] = True
    return kept, False


def _threshold(values: Float[np.ndarray, "mask"], count: int) -> float:
    """The `count`-th largest value; a sample of the values leaves few to look through."""
    sample = values[::16]
    rank = count // 12 + 8
    if rank < len(sample):
        above = values[values > np.partition(sample, -rank)[-rank]]
        if len(above) >= count:
            return float(np.partition(above, -count)[-count])
    return float(np.partition(values, -count)[-count])


def level_and_velocity(
    kept: Sequence[Kept], steps: Sequence[int], total: int, sure: Sequence[bool]
) -> tuple[Curve, Curve]:
    """Overlap of each snapshot's circuit with the last one's, and distance to the one before per hundredth of the run.

    Velocity is not measured from a circuit that ties decided (`sure`), and not at the first snapshot; what follows
    stands there.

    Args:
        kept: equally many edges in every snapshot.
        steps: of the snapshots.
        total: steps of the whole run.
        sure: of each snapshot, that no ties decided it.
    """
    packed = np.packbits(np.stack(kept), axis=1)
    count, size = int(np.count_nonzero(kept[0])), len(kept[0])

    def overlaps(one: np.ndarray, other: np.ndarray) -> Curve:
        shared = np.bitwise_count(one & other).sum(1, dtype=int)
        return np.array([corrected_overlap(int(number), count, count, size) for number in shared])

    shares = np.diff(steps) / total
    velocity = np.concatenate([[0.0], (1 - overlaps(packed[1:], packed[:-1])) / (100 * shares)])
    for at in reversed([at for at in range(len(steps)) if at == 0 or not sure[at - 1]]):
        velocity[at] = velocity[at + 1] if at + 1 < len(steps) else 0.0
    return overlaps(packed, packed[-1:]), velocity


def walks(
    values: Values, count: int, steps: Sequence[int], total: int, sure: Sequence[bool], draws: int, seed: int = 0
) -> Float[np.ndarray, "draw snapshot 2"]:
    """`level_and_velocity` of walks.

    Args:
        values: log-alphas of the run.
        count: edges kept in every snapshot.
        steps, total, sure: of the run, as for `level_and_velocity`.
        draws: walks.
        seed: of the signs.
    """
    moves = np.diff(values, axis=0)
    moves -= moves.mean(1, keepdims=True)
    every = float(np.median(np.diff(steps)))
    block = max(1, round(MEMORY / every))
    moves *= _stretch(round(block * every))
    draw = np.random.default_rng(seed)
    start = best_edges(values[0], count)[0]
    found = []
    for _ in range(draws):
        signs, phase = _signs(draw, len(moves) // block + 2, values.shape[1]), draw.integers(block)
        place, kept = values[0].copy(), [start]
        for number, move in enumerate(moves):
            place += move * signs[(number + phase) // block]
            kept.append(best_edges(place, count)[0])
        found.append(np.stack(level_and_velocity(kept, steps, total, sure), 1))
    return np.stack(found)


def _stretch(length: int) -> float:
    """By how much a walk with momentum gets further than one of the same steps whose signs change every `length` steps.

    Steps that are k apart are alike by `MOMENTUM ** k`, and have one sign with a probability of 1 - k / length.
    """
    apart = np.arange(1, length)
    alike = MOMENTUM**apart
    within = 1 + 2 * float(alike @ (1 - apart / length))
    return ((1 + MOMENTUM) / (1 - MOMENTUM) / within) ** 0.5


def _signs(draw: np.random.Generator, blocks: int, size: int) -> Float[np.ndarray, "block mask"]:
    """Minus or plus one, independent and equally likely."""
    bits = np.unpackbits(np.frombuffer(draw.bytes(blocks * -(-size // 8)), np.uint8).reshape(blocks, -1), axis=1)
    return 2 * bits[:, :size].astype(np.float32) - 1
