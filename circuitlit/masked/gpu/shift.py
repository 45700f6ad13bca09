"""The constraint's scalar by bisection in one launch; the twin is `Gates.shift_to`."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# (Triton's language is no Python to a type checker.)
from __future__ import annotations

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

BLOCK = 16384


@triton.jit(do_not_specialize=["size"])
def _shift(log_alpha, out, share, threshold, temperature, spread, size, ROUNDS: tl.constexpr, N: tl.constexpr):
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
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        sums = tl.zeros((N,), tl.float32)
        for first in range(0, size, N):
            inside = first + places < size
            a = tl.load(log_alpha + first + places, mask=inside, other=0.0)
            sums += tl.where(inside, 1.0 / (1.0 + tl.exp((threshold - middle - a) * sharpness)), 0.0)
        too_many = tl.sum(sums, 0) / size > share
        low, high = tl.where(too_many, low, middle), tl.where(too_many, middle, high)
    tl.store(out, (low + high) / 2)


def shift(
    log_alpha: Float[Tensor, "mask"],
    share: float,
    threshold: float,
    temperature: float,
    spread: float,
    rounds: int,
) -> Float[Tensor, ""]:
    """The scalar s with `mean sigmoid((log_alpha + s - threshold) / temperature) = share`."""
    out = log_alpha.new_empty(())
    _shift[(1,)](
        log_alpha, out, share, threshold, temperature, spread, log_alpha.numel(), ROUNDS=rounds, N=BLOCK, num_warps=32
    )
    return out
