"""The two products of an edge mask as Triton kernels that read every delta once.

With few readers and half a million numbers in a writer's row the products are bound by memory traffic. `mix` keeps the
readers' sums of one stretch of the rows in registers while the writers stream by; `mix_backward` reads gradients and
deltas together and makes both gradients of them. Sums are in float32. The plain twins are in `masked/kernels.py`.

The masks come in the deltas' precision, in rows that begin at multiples of 16 bytes and with room on both sides
(`laid_out`): only so can whole tiles of them be fetched ahead, without bounds, while the products run.
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
ALIGNED = 8  # masks: a slice of writers is read from such a multiple on
MARGIN = 128  # writers in the largest block
SUMMED = (32, 32)  # parts and masks' gradients in one step of `_sum_parts`
WAVES = 4  # blocks of `mix_backward` that follow each other on a multiprocessor, about
# by readers in a block: writers and numbers in a block, warps, stages of the pipeline
FORWARD = {16: (16, 512, 4, 3), 32: (32, 128, 4, 3), 64: (32, 128, 8, 3), 128: (32, 128, 4, 4), 256: (64, 128, 8, 4)}
BACKWARD = {16: (16, 256, 4, 3), 32: (32, 128, 4, 3), 64: (16, 128, 4, 3), 128: (64, 128, 8, 3), 256: (128, 64, 8, 3)}


def laid_out(masks: Float[Tensor, "reader writer"], dtype: torch.dtype) -> Float[Tensor, "more_readers more_writers"]:
    """The masks as the kernels want them: cast, with `MOST_READERS` rows and at least `MARGIN` columns more."""
    readers, writers = masks.shape
    out = masks.new_zeros(readers + MOST_READERS, cdiv(writers, MARGIN) * MARGIN + MARGIN, dtype=dtype)
    out[:readers, :writers] = masks
    return out


def _from_aligned(masks: Tensor, readers: slice, writers: slice) -> tuple[Tensor, int, int]:
    """The first mask to read, its writer, and how many writers from there on are not meant."""
    first = writers.start // ALIGNED * ALIGNED
    return masks[readers.start :, first:], first, writers.start - first


@triton.jit(do_not_specialize=["readers", "skip", "writers"])
def _mix(
    out,
    base,
    shared,
    masks,
    deltas,
    readers,
    skip,
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
        w_in = (ws >= skip) & (ws < writers)
        d = tl.load(
            deltas + ws.to(tl.int64)[:, None] * delta_stride + cols[None, :],
            mask=w_in[:, None] & col_in[None, :],
            other=0.0,
        )
        z = tl.load(masks + rows[:, None] * mask_stride + ws[None, :])
        sums += tl.dot(z, d, input_precision=PRECISION)
    tl.store(out + rows.to(tl.int64)[:, None] * out_stride + cols[None, :], sums.to(out.dtype.element_ty), mask=inside)


def mix(
    out: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "more_readers more_writers"],
    readers: slice,
    writers: slice,
    deltas: Float[Tensor, "all_writers token d"],
    base: Float[Tensor, "reader token d"] | None = None,
    shared: Float[Tensor, "token d"] | None = None,
) -> None:
    """Write `base[r] + shared + sum_w masks[r, w] * deltas[w]`, of some readers and writers, to `out`.

    Args:
        out: of these readers.
        masks: of all readers and writers, from `laid_out`.
        readers: those of `out`.
        writers: whose deltas are summed.
        deltas: of all writers.
        base: may be `out` itself.
        shared: the same for all readers.
    """
    masks, first, skip = _from_aligned(masks, readers, writers)
    size, count = out[0].numel(), len(out)
    stop = writers.stop - first if writers.stop > writers.start else 0
    r = min(max(FORWARD), max(16, triton.next_power_of_2(count)))
    w, n, warps, stages = FORWARD[r]
    grid = (cdiv(size, n) * cdiv(count, r),)
    _mix[grid](
        out,
        out if base is None else base,
        out if shared is None else shared,
        masks,
        deltas[first:],
        count,
        skip,
        stop,
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


@triton.jit(do_not_specialize=["readers", "skip", "writers", "steps"])
def _mix_backward(
    grad,
    masks,
    deltas,
    grad_deltas,
    parts,
    readers,
    skip,
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
    row_in, w_in = rows < readers, (ws >= skip) & (ws < writers)
    z = tl.trans(tl.load(masks + rows[:, None] * mask_stride + ws[None, :]))
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
    masks: Float[Tensor, "more_readers more_writers"],
    readers: slice,
    writers: slice,
    deltas: Float[Tensor, "all_writers token d"],
    grad_deltas: Float[Tensor, "all_writers token d"],
    grad_masks: Float[Tensor, "reader writer"],
) -> None:
    """Write the gradient of some masks to `grad_masks` and add that of the deltas to `grad_deltas`, in place.

    The arguments are those of `mix`; `grad` and `grad_masks` are of these readers and writers alone.
    """
    for first in range(0, len(grad), MOST_READERS):
        some = slice(first, first + MOST_READERS)
        rows = slice(readers.start + first, readers.stop)
        _backward_of_some(
            grad[some], *_from_aligned(masks, rows, writers), writers, deltas, grad_deltas, grad_masks[some]
        )


def _backward_of_some(
    grad: Tensor,
    masks: Tensor,
    first: int,
    skip: int,
    writers: slice,
    deltas: Tensor,
    grad_deltas: Tensor,
    grad_masks: Tensor,
) -> None:
    readers, stop = len(grad), writers.stop - first
    size = grad[0].numel()
    r = max(16, triton.next_power_of_2(readers))
    w, n, warps, stages = BACKWARD[r]
    blocks = cdiv(stop, w)
    steps = max(1, cdiv(size, n * max(1, cdiv(WAVES * processors(grad.device), blocks))))
    splits = cdiv(size, n * steps)
    parts = grad.new_empty(splits, readers, stop, dtype=torch.float32)
    _mix_backward[(blocks, splits)](
        grad,
        masks,
        deltas[first:],
        grad_deltas[first:],
        parts,
        readers,
        skip,
        stop,
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
    _sum_parts[(cdiv(readers * stop, SUMMED[1]),)](
        parts, grad_masks, splits, skip, stop, readers * stop, *grad_masks.stride(), S=SUMMED[0], N=SUMMED[1]
    )


@triton.jit(do_not_specialize=["splits", "skip", "stop", "size", "row_stride"])
def _sum_parts(
    parts, out, splits, skip, stop, size, row_stride, column_stride, S: tl.constexpr, N: tl.constexpr
):  # `torch.sum` over the first axis of so few numbers takes several times as long
    places, some = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, S)
    inside = places < size
    sums = tl.zeros((S, N), tl.float32)
    for first in range(0, splits, S):
        rows = first + some
        taken = (rows < splits)[:, None] & inside[None, :]
        sums += tl.load(parts + rows.to(tl.int64)[:, None] * size + places[None, :], mask=taken, other=0.0)
    reader, writer = places // stop, places % stop
    place = out + reader.to(tl.int64) * row_stride + (writer - skip) * column_stride
    tl.store(place, tl.sum(sums, 0).to(out.dtype.element_ty), mask=inside & (writer >= skip))
