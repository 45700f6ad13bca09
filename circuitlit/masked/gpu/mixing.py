"""The two products of an edge mask as Triton kernels that read every delta once.

With few readers and half a million numbers in a writer's row the products are bound by memory traffic. `mix` keeps the
readers' sums of one stretch of the rows in registers while the writers stream by; `mix_backward` reads gradients and
deltas together and makes both gradients of them. Sums are in float32. The plain twins are in `masked/kernels.py`.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# (Triton's language is no Python to a type checker.)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from circuitlit.masked.gpu.launch import cdiv, precision, processors

MOST_READERS = 256  # in one launch of `mix_backward`
# by readers in a block: writers and numbers in a block, warps, stages of the pipeline
FORWARD = {16: (16, 512, 8, 3), 32: (32, 128, 4, 3), 64: (32, 128, 8, 3), 128: (64, 256, 8, 3)}
BACKWARD = {16: (16, 256, 4, 3), 32: (32, 128, 4, 3), 64: (16, 128, 4, 3), 128: (64, 128, 8, 3), 256: (64, 128, 8, 2)}


@triton.jit(do_not_specialize=["readers", "writers"], do_not_specialize_on_alignment=["masks"])
def _mix(
    out,
    base,
    shared,
    masks,
    deltas,
    readers,
    writers,
    size,
    out_stride,
    base_stride,
    mask_stride,
    delta_stride,
    HAS_BASE: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
):
    row_blocks = tl.cdiv(readers, R)
    rows = tl.program_id(0) % row_blocks * R + tl.arange(0, R)
    cols = (tl.program_id(0) // row_blocks).to(tl.int64) * N + tl.arange(0, N)
    row_in, col_in = rows < readers, cols < size
    inside = row_in[:, None] & col_in[None, :]
    sums = tl.zeros((R, N), tl.float32)  # the loads below are under way before the first product needs them
    if HAS_BASE:
        sums += tl.load(base + rows.to(tl.int64)[:, None] * base_stride + cols[None, :], mask=inside, other=0.0)
    if HAS_SHARED:
        sums += tl.load(shared + cols, mask=col_in, other=0.0)[None, :]
    for first in range(0, writers, W):
        ws = first + tl.arange(0, W)
        w_in = ws < writers
        d = tl.load(
            deltas + ws.to(tl.int64)[:, None] * delta_stride + cols[None, :],
            mask=w_in[:, None] & col_in[None, :],
            other=0.0,
        )
        z = tl.load(masks + rows[:, None] * mask_stride + ws[None, :], mask=row_in[:, None] & w_in[None, :], other=0.0)
        sums += tl.dot(z.to(d.dtype), d, input_precision=PRECISION)
    tl.store(out + rows.to(tl.int64)[:, None] * out_stride + cols[None, :], sums.to(out.dtype.element_ty), mask=inside)


def mix(
    out: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "reader writer"],
    deltas: Float[Tensor, "writer token d"],
    base: Float[Tensor, "reader token d"] | None = None,
    shared: Float[Tensor, "token d"] | None = None,
) -> None:
    """Write `base[r] + shared + sum_w masks[r, w] * deltas[w]` to `out`; `base` may be `out` itself."""
    readers, writers = masks.shape
    size = out[0].numel()
    r = min(128, max(16, triton.next_power_of_2(readers)))
    w, n, warps, stages = FORWARD[r]
    grid = (cdiv(size, n) * cdiv(readers, r),)
    _mix[grid](
        out,
        out if base is None else base,
        out if shared is None else shared,
        masks,
        deltas,
        readers,
        writers,
        size,
        out.stride(0),
        0 if base is None else base.stride(0),
        masks.stride(0),
        deltas.stride(0),
        HAS_BASE=base is not None,
        HAS_SHARED=shared is not None,
        PRECISION=precision(deltas.dtype),
        R=r,
        W=w,
        N=n,
        num_warps=warps,
        num_stages=stages,
    )


@triton.jit(do_not_specialize=["readers", "writers", "steps"], do_not_specialize_on_alignment=["masks"])
def _mix_backward(
    grad,
    masks,
    deltas,
    grad_deltas,
    parts,
    readers,
    writers,
    size,
    grad_stride,
    mask_stride,
    delta_stride,
    grad_delta_stride,
    steps,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
):
    rows, ws = tl.arange(0, R), tl.program_id(0) * W + tl.arange(0, W)
    row_in, w_in = rows < readers, ws < writers
    z = tl.load(masks + rows[:, None] * mask_stride + ws[None, :], mask=row_in[:, None] & w_in[None, :], other=0.0)
    z = tl.trans(z.to(deltas.dtype.element_ty))
    sums = tl.zeros((R, W), tl.float32)
    begin = tl.program_id(1).to(tl.int64) * steps * N
    row_offsets, w_offsets = rows.to(tl.int64)[:, None], ws.to(tl.int64)[:, None]
    for step in range(0, steps):
        cols = begin + step * N + tl.arange(0, N)
        col_in = cols < size
        w_inside = w_in[:, None] & col_in[None, :]
        g = tl.load(grad + row_offsets * grad_stride + cols[None, :], mask=row_in[:, None] & col_in[None, :], other=0.0)
        d = tl.load(deltas + w_offsets * delta_stride + cols[None, :], mask=w_inside, other=0.0)
        place = grad_deltas + w_offsets * grad_delta_stride + cols[None, :]
        held = tl.load(place, mask=w_inside, other=0.0)
        sums += tl.dot(g, tl.trans(d), input_precision=PRECISION)
        held += tl.dot(z, g, input_precision=PRECISION).to(tl.float32)
        tl.store(place, held.to(grad_deltas.dtype.element_ty), mask=w_inside)
    place = parts + (tl.program_id(1) * readers + rows)[:, None] * writers + ws[None, :]
    tl.store(place, sums, mask=row_in[:, None] & w_in[None, :])


def mix_backward(
    grad: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "reader writer"],
    deltas: Float[Tensor, "writer token d"],
    grad_deltas: Float[Tensor, "writer token d"],
    grad_masks: Float[Tensor, "reader writer"],
) -> None:
    """Write the masks' gradient to `grad_masks` and add that of the deltas to `grad_deltas`, in place."""
    for first in range(0, len(masks), MOST_READERS):
        some = slice(first, first + MOST_READERS)
        _backward_of_some(grad[some], masks[some], deltas, grad_deltas, grad_masks[some])


def _backward_of_some(grad: Tensor, masks: Tensor, deltas: Tensor, grad_deltas: Tensor, grad_masks: Tensor) -> None:
    readers, writers = masks.shape
    size = grad[0].numel()
    r = max(16, triton.next_power_of_2(readers))
    w, n, warps, stages = BACKWARD[r]
    blocks = cdiv(writers, w)
    steps = max(1, cdiv(size, n * max(1, cdiv(4 * processors(grad.device), blocks))))
    splits = cdiv(size, n * steps)
    parts = grad.new_empty(splits, readers, writers, dtype=torch.float32)
    _mix_backward[(blocks, splits)](
        grad,
        masks,
        deltas,
        grad_deltas,
        parts,
        readers,
        writers,
        size,
        grad.stride(0),
        masks.stride(0),
        deltas.stride(0),
        grad_deltas.stride(0),
        steps,
        PRECISION=precision(deltas.dtype),
        R=r,
        W=w,
        N=n,
        num_warps=warps,
        num_stages=stages,
    )
    torch.sum(parts, 0, out=grad_masks) if grad_masks.dtype == parts.dtype else grad_masks.copy_(parts.sum(0))
