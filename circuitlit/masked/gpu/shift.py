"""The constraint's scalar in one launch; the twin is `Gates.shift_to`.

A search by Newton's steps, or by halves where such a step would leave the bracket or be no shorter than half the last:
it begins at 0, near which the shift is from one training step to the next.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# (Triton's language is no Python to a type checker.)
from __future__ import annotations

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

BLOCK = 16384
TOLERANCE = 1e-4  # temperatures: behind a Newton step this short, the error is its square


@triton.jit(do_not_specialize=["size"])
def _shift(
    log_alpha, out, share, threshold, temperature, spread, tolerance, size, ROUNDS: tl.constexpr, N: tl.constexpr
):
    places = tl.arange(0, N)
    least, most = tl.full((N,), float("inf"), tl.float32), tl.full((N,), float("-inf"), tl.float32)
    for first in range(0, size, N):
        inside = first + places < size
        a = tl.load(log_alpha + first + places, mask=inside, other=0.0)
        least = tl.minimum(least, tl.where(inside, a, float("inf")))
        most = tl.maximum(most, tl.where(inside, a, float("-inf")))
    low = threshold - tl.max(most, 0) - spread
    high = threshold - tl.min(least, 0) + spread
    sharpness = 1.0 / temperature
    middle = tl.minimum(tl.maximum(0.0, low), high)
    step = high - low
    rounds = 0
    while (rounds < ROUNDS) & (tl.abs(step) > tolerance):
        sums, slopes = tl.zeros((N,), tl.float32), tl.zeros((N,), tl.float32)
        for first in range(0, size, N):
            inside = first + places < size
            a = tl.load(log_alpha + first + places, mask=inside, other=0.0)
            open_share = tl.where(inside, 1.0 / (1.0 + tl.exp((threshold - middle - a) * sharpness)), 0.0)
            sums += open_share
            slopes += open_share * (1.0 - open_share)
        over = tl.sum(sums, 0) / size - share
        low, high = tl.where(over > 0, low, middle), tl.where(over > 0, middle, high)
        newton = -over / tl.maximum(tl.sum(slopes, 0) / size * sharpness, 1.0e-30)
        good = (middle + newton >= low) & (middle + newton <= high) & (tl.abs(newton) < tl.abs(step) / 2)
        step = tl.where(good, newton, (low + high) / 2 - middle)
        middle += step
        rounds += 1
    tl.store(out, middle)


def shift(
    log_alpha: Float[Tensor, "mask"],
    share: float,
    threshold: float,
    temperature: float,
    spread: float,
    rounds: int,
) -> Float[Tensor, ""]:
    """The scalar s with `mean sigmoid((log_alpha + s - threshold) / temperature) = share`.

    Halving alone would need `rounds`; with Newton's steps between, twice as many are the most.
    """
    out, size, tolerance = log_alpha.new_empty(()), log_alpha.numel(), TOLERANCE * temperature
    _shift[(1,)](
        log_alpha,
        out,
        share,
        threshold,
        temperature,
        spread,
        tolerance,
        size,
        ROUNDS=2 * rounds,
        N=BLOCK,
        num_warps=32,
    )
    return out
