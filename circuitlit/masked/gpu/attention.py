"""Causal attention of short prompts in one launch: rotation, scores, softmax, values, minus the ablated results.

One program holds a whole prompt of one head. Backward computes the probabilities again; one program takes a key head
with all query heads that share it. The plain twin is `MaskedBlock._attend`.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# (Triton's language is no Python to a type checker.)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from circuitlit.masked.gpu.launch import precision


@triton.jit
def _partner(os, rotated):
    """The column that a column is rotated with."""
    half = rotated // 2
    return tl.where(os < half, os + half, tl.where(os < rotated, os - half, os))


@triton.jit
def _rotated(x, cos, sin, ts, columns, other, t_in, outs, rotated, ROTARY: tl.constexpr):
    """Rows `ts` of x at some columns, rotated with those at their partners, in float32."""
    inside = t_in[:, None] & (columns < outs)[None, :]
    y = tl.load(x + ts[:, None] * outs + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if ROTARY:
        turned = inside & (columns < rotated)[None, :]
        z = tl.load(x + ts[:, None] * outs + other[None, :], mask=turned, other=0.0).to(tl.float32)
        place = ts[:, None] * rotated + columns[None, :]
        c = tl.load(cos + place, mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + place, mask=turned, other=0.0).to(tl.float32)
        y = y * c + z * s * tl.where(columns < rotated // 2, -1.0, 1.0)[None, :]
    return y


@triton.jit
def _probabilities(q, k, ts, t_in, scale, PRECISION: tl.constexpr):
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION).to(tl.float32) * scale
    seen = (ts[None, :] <= ts[:, None]) & t_in[None, :]
    scores = tl.where(seen, scores, -1.0e30)
    weights = tl.where(seen, tl.exp(scores - tl.max(scores, 1)[:, None]), 0.0)
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _attend(
    qkv,
    cos,
    sin,
    ablated,
    out,
    batch,
    length,
    outs,
    rotated,
    scale,
    ablated_batch,
    ablated_token,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    ROTARY: tl.constexpr,
    PRECISION: tl.constexpr,
    L: tl.constexpr,
    OUT: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kv = head // (HEADS // KV)
    ts, os = tl.arange(0, L), tl.arange(0, OUT)
    t_in = ts < length
    inside = t_in[:, None] & (os < outs)[None, :]
    other = _partner(os, rotated)
    stride = batch * length * outs
    start = row * length * outs
    dtype = qkv.dtype.element_ty
    q = _rotated(qkv + head.to(tl.int64) * stride + start, cos, sin, ts, os, other, t_in, outs, rotated, ROTARY)
    k = _rotated(qkv + (HEADS + kv).to(tl.int64) * stride + start, cos, sin, ts, os, other, t_in, outs, rotated, ROTARY)
    place = ts[:, None] * outs + os[None, :]
    v = tl.load(qkv + (HEADS + KV + kv).to(tl.int64) * stride + start + place, mask=inside, other=0.0)
    p = _probabilities(q.to(dtype), k.to(dtype), ts, t_in, scale, PRECISION)
    result = tl.dot(p.to(dtype), v, input_precision=PRECISION).to(tl.float32)
    cut = ablated + row * ablated_batch + ts[:, None] * ablated_token + head * outs + os[None, :]
    result -= tl.load(cut, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + head.to(tl.int64) * stride + start + place, result.to(dtype), mask=inside)


@triton.jit
def _attend_backward(
    qkv,
    cos,
    sin,
    grad,
    grad_qkv,
    batch,
    length,
    outs,
    rotated,
    scale,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    ROTARY: tl.constexpr,
    PRECISION: tl.constexpr,
    L: tl.constexpr,
    OUT: tl.constexpr,
):
    row, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ts, os = tl.arange(0, L), tl.arange(0, OUT)
    t_in = ts < length
    inside = t_in[:, None] & (os < outs)[None, :]
    other = _partner(os, rotated)
    stride = batch * length * outs
    start = row * length * outs
    dtype = qkv.dtype.element_ty
    place = ts[:, None] * outs + os[None, :]
    keys = qkv + (HEADS + kv).to(tl.int64) * stride + start
    k = _rotated(keys, cos, sin, ts, os, other, t_in, outs, rotated, ROTARY).to(dtype)
    v = tl.load(qkv + (HEADS + KV + kv).to(tl.int64) * stride + start + place, mask=inside, other=0.0)
    dk, dv = tl.zeros((L, OUT), tl.float32), tl.zeros((L, OUT), tl.float32)
    if ROTARY:
        k_other = _rotated(keys, cos, sin, ts, other, os, t_in, outs, rotated, ROTARY).to(dtype)
        dk_other = tl.zeros((L, OUT), tl.float32)
        turned = inside & (os < rotated)[None, :]
        c = tl.load(cos + ts[:, None] * rotated + os[None, :], mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + ts[:, None] * rotated + other[None, :], mask=turned, other=0.0).to(tl.float32)
        s *= tl.where(os < rotated // 2, 1.0, -1.0)[None, :]
    for number in range(HEADS // KV):
        head = kv * (HEADS // KV) + number
        queries = qkv + head.to(tl.int64) * stride + start
        q = _rotated(queries, cos, sin, ts, os, other, t_in, outs, rotated, ROTARY).to(dtype)
        g = tl.load(grad + head.to(tl.int64) * stride + start + place, mask=inside, other=0.0)
        p = _probabilities(q, k, ts, t_in, scale, PRECISION)
        dv += tl.dot(tl.trans(p.to(dtype)), g, input_precision=PRECISION).to(tl.float32)
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION).to(tl.float32)
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(dtype)
        dq = tl.dot(ds, k, input_precision=PRECISION).to(tl.float32)
        dk += tl.dot(tl.trans(ds), q, input_precision=PRECISION).to(tl.float32)
        if ROTARY:
            q_other = _rotated(queries, cos, sin, ts, other, os, t_in, outs, rotated, ROTARY).to(dtype)
            dk_other += tl.dot(tl.trans(ds), q_other, input_precision=PRECISION).to(tl.float32)
            dq = dq * c + tl.dot(ds, k_other, input_precision=PRECISION).to(tl.float32) * s
        tl.store(grad_qkv + head.to(tl.int64) * stride + start + place, dq.to(dtype), mask=inside)
    if ROTARY:
        dk = dk * c + dk_other * s
    tl.store(grad_qkv + (HEADS + kv).to(tl.int64) * stride + start + place, dk.to(dtype), mask=inside)
    tl.store(grad_qkv + (HEADS + KV + kv).to(tl.int64) * stride + start + place, dv.to(dtype), mask=inside)


def attend(
    qkv: Float[Tensor, "reader token out"],
    ablated: Float[Tensor, "batch pos width"],
    heads: int,
    kv: int,
    scale: float,
    cos: Float[Tensor, "one pos rotated"] | None = None,
    sin: Float[Tensor, "one pos rotated"] | None = None,
) -> Float[Tensor, "head token out"]:
    """What every head's result is beyond its ablated one; queries, keys and values are the rows of `qkv`."""
    batch, length = ablated.shape[:2]
    ablated = ablated if ablated.stride(2) == 1 else ablated.contiguous()
    out = qkv.new_empty(heads, *qkv.shape[1:])
    _attend[(batch, heads)](
        qkv,
        qkv if cos is None else cos,
        qkv if sin is None else sin,
        ablated,
        out,
        batch,
        length,
        qkv.shape[2],
        0 if cos is None else cos.shape[-1],
        scale,
        ablated.stride(0),
        ablated.stride(1),
        **_constants(qkv, length, heads, kv, cos),
    )
    return out


def attend_backward(
    grad: Float[Tensor, "head token out"],
    qkv: Float[Tensor, "reader token out"],
    batch: int,
    heads: int,
    kv: int,
    scale: float,
    cos: Float[Tensor, "one pos rotated"] | None = None,
    sin: Float[Tensor, "one pos rotated"] | None = None,
) -> Float[Tensor, "reader token out"]:
    """Gradient of `attend` for queries, keys and values."""
    length = qkv.shape[1] // batch
    grad_qkv = torch.empty_like(qkv)
    _attend_backward[(batch, kv)](
        qkv,
        qkv if cos is None else cos,
        qkv if sin is None else sin,
        grad,
        grad_qkv,
        batch,
        length,
        qkv.shape[2],
        0 if cos is None else cos.shape[-1],
        scale,
        **_constants(qkv, length, heads, kv, cos),
    )
    return grad_qkv


def _constants(qkv: Tensor, length: int, heads: int, kv: int, cos: Tensor | None) -> dict[str, object]:
    rows = max(16, triton.next_power_of_2(length))
    return {
        "HEADS": heads,
        "KV": kv,
        "ROTARY": cos is not None,
        "PRECISION": precision(qkv.dtype),
        "L": rows,
        "OUT": max(16, triton.next_power_of_2(qkv.shape[2])),
        "num_warps": 4 if rows <= 64 else 8,
        "num_stages": 1,
    }
