"""Norm and projection of all readers in one launch, forward and backward; the twin is `masked/projection.py`.

Forward, for each reader's stream x and folded weights W': `out = s (x W') + c`; the norm's factor s and mean come from
the same pass over x. Backward, with g the gradient of out: `dx = s g W'^T - p (x - mean)` with
`p = s^2 sum(g (out - c)) / d`. Where folded weights would take too much memory, the norm's gain is applied on the way:
to x forward, to dx backward, and the weights are read as they lie.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# (Triton's language is no Python to a type checker.)
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from circuitlit.masked.gpu.launch import cdiv, precision

TOKENS = 64  # in a block


@triton.jit
def _project(
    x,
    weight,
    gain,
    constant,
    out,
    means,
    factors,
    tokens,
    width,
    outs,
    eps,
    x_stride,
    reader_stride,
    width_stride,
    out_stride,
    CENTRED: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    HAS_CONSTANT: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
):
    reader = tl.program_id(1).to(tl.int64)
    ts, os = tl.program_id(0) * T + tl.arange(0, T), tl.arange(0, OUT)
    t_in, o_in = ts < tokens, os < outs
    x += reader * x_stride
    weight += reader * reader_stride
    sums = tl.zeros((T, OUT), tl.float32)
    total, squares = tl.zeros((T,), tl.float32), tl.zeros((T,), tl.float32)
    for first in range(0, width, K):
        ks = first + tl.arange(0, K)
        k_in = ks < width
        a = tl.load(x + ts[:, None] * width + ks[None, :], mask=t_in[:, None] & k_in[None, :], other=0.0)
        place = weight + ks[:, None] * width_stride + os[None, :] * out_stride
        b = tl.load(place, mask=k_in[:, None] & o_in[None, :], other=0.0)
        wide = a.to(tl.float32)
        if HAS_GAIN:
            a = (wide * tl.load(gain + ks, mask=k_in, other=0.0).to(tl.float32)[None, :]).to(x.dtype.element_ty)
        sums += tl.dot(a, b, input_precision=PRECISION)
        squares += tl.sum(wide * wide, 1)
        if CENTRED:
            total += tl.sum(wide, 1)
    mean = total / width
    factor = tl.rsqrt(tl.maximum(squares / width - mean * mean, 0.0) + eps)
    row = reader * tokens + ts
    tl.store(factors + row, factor, mask=t_in)
    if CENTRED:
        tl.store(means + row, mean, mask=t_in)
    sums *= factor[:, None]
    if HAS_CONSTANT:
        sums += tl.load(constant + reader * outs + os, mask=o_in, other=0.0).to(tl.float32)[None, :]
    inside = t_in[:, None] & o_in[None, :]
    tl.store(out + row[:, None] * outs + os[None, :], sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _project_backward(
    grad,
    out,
    x,
    weight,
    gain,
    constant,
    means,
    factors,
    grad_x,
    tokens,
    width,
    outs,
    x_stride,
    grad_x_stride,
    reader_stride,
    width_stride,
    out_stride,
    CENTRED: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    HAS_CONSTANT: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
):
    reader = tl.program_id(1).to(tl.int64)
    ts, os = tl.program_id(0) * T + tl.arange(0, T), tl.arange(0, OUT)
    t_in, o_in = ts < tokens, os < outs
    row = reader * tokens + ts
    inside = t_in[:, None] & o_in[None, :]
    g = tl.load(grad + row[:, None] * outs + os[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(out + row[:, None] * outs + os[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_CONSTANT:
        y -= tl.load(constant + reader * outs + os, mask=o_in, other=0.0).to(tl.float32)[None, :]
    factor = tl.load(factors + row, mask=t_in, other=0.0)
    pull = tl.sum(g * y, 1) * factor * factor / width
    scaled = (g * factor[:, None]).to(grad.dtype.element_ty)
    if CENTRED:
        mean = tl.load(means + row, mask=t_in, other=0.0)
    x += reader * x_stride
    grad_x += reader * grad_x_stride
    weight += reader * reader_stride
    for first in range(0, width, K):
        ks = first + tl.arange(0, K)
        k_in = ks < width
        place = weight + ks[:, None] * width_stride + os[None, :] * out_stride
        b = tl.load(place, mask=k_in[:, None] & o_in[None, :], other=0.0)
        inner = t_in[:, None] & k_in[None, :]
        a = tl.load(x + ts[:, None] * width + ks[None, :], mask=inner, other=0.0).to(tl.float32)
        if CENTRED:
            a -= mean[:, None]
        back = tl.dot(scaled, tl.trans(b), input_precision=PRECISION).to(tl.float32)
        if HAS_GAIN:
            back *= tl.load(gain + ks, mask=k_in, other=0.0).to(tl.float32)[None, :]
        back -= pull[:, None] * a
        tl.store(grad_x + ts[:, None] * width + ks[None, :], back.to(grad_x.dtype.element_ty), mask=inner)


def project(
    x: Float[Tensor, "reader token d"],
    weight: Float[Tensor, "reader d out"] | Sequence[Float[Tensor, "_ d out"]],
    constant: Float[Tensor, "reader one out"] | None,
    eps: float,
    centred: bool,
    gain: Float[Tensor, "d"] | None = None,
) -> tuple[
    Float[Tensor, "reader token out"], Float[Tensor, "reader token one"] | None, Float[Tensor, "reader token one"]
]:
    """`norm(x) W + c`; also each token's mean (where it matters) and factor.

    Args:
        x: streams.
        weight: with the norm folded into it, or, with a gain, as it is: in parts of consecutive readers.
        constant: what every token gets.
        eps: added to the variance.
        centred: True where the norm subtracts the mean, which must be folded in.
        gain: the norm's own, where it is not in the weights.
    """
    readers, tokens, width = x.shape
    weights = [weight] if isinstance(weight, Tensor) else weight
    outs = weights[0].shape[2]
    out = x.new_empty(readers, tokens, outs)
    factor = x.new_empty(readers, tokens, 1, dtype=torch.float32)
    mean = torch.empty_like(factor) if centred else None
    for some, part in _parts(weights):
        _project[(cdiv(tokens, TOKENS), len(part))](
            x[some],
            part,
            out if gain is None else gain,
            out if constant is None else constant[some],
            out[some],
            factor if mean is None else mean[some],
            factor[some],
            tokens,
            width,
            outs,
            eps,
            x.stride(0),
            *part.stride(),
            CENTRED=centred,
            HAS_GAIN=gain is not None,
            HAS_CONSTANT=constant is not None,
            PRECISION=precision(x.dtype),
            **_blocks(x, outs),
            num_stages=3,
        )
    return out, mean, factor


def project_backward(
    grad: Float[Tensor, "reader token out"],
    out: Float[Tensor, "reader token out"],
    x: Float[Tensor, "reader token d"],
    weight: Float[Tensor, "reader d out"] | Sequence[Float[Tensor, "_ d out"]],
    constant: Float[Tensor, "reader one out"] | None,
    mean: Float[Tensor, "reader token one"] | None,
    factor: Float[Tensor, "reader token one"],
    room: Float[Tensor, "reader token d"],
    gain: Float[Tensor, "d"] | None = None,
) -> None:
    """Write the gradient of `project` for x to `room`."""
    _, tokens, width = x.shape
    weights = [weight] if isinstance(weight, Tensor) else weight
    outs = weights[0].shape[2]
    for some, part in _parts(weights):
        _project_backward[(cdiv(tokens, TOKENS), len(part))](
            grad[some],
            out[some],
            x[some],
            part,
            out if gain is None else gain,
            out if constant is None else constant[some],
            factor if mean is None else mean[some],
            factor[some],
            room[some],
            tokens,
            width,
            outs,
            x.stride(0),
            room.stride(0),
            *part.stride(),
            CENTRED=mean is not None,
            HAS_GAIN=gain is not None,
            HAS_CONSTANT=constant is not None,
            PRECISION=precision(x.dtype),
            **_blocks(x, outs),
            num_stages=2,
        )


def _parts(weights: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Each part of the weights and its readers."""
    first = 0
    for part in weights:
        yield slice(first, first + len(part)), part
        first += len(part)


def _blocks(x: Tensor, outs: int) -> dict[str, int]:
    return {
        "T": TOKENS,
        "K": 64 if x.element_size() < 4 else 32,
        "OUT": max(16, triton.next_power_of_2(outs)),
        "num_warps": 4,
    }
