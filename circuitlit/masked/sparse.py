"""Mixing on a CPU where most edges are cut: products that pass over masks of 0, instead of multiplying by them.

The masks are put into compressed rows, which takes microseconds beside the milliseconds of a product. Half a million
columns of deltas are passed through in pieces that stay in a core's cache.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DENSEST = 0.12  # share of masks above 0 from which on the plain product is as fast
PIECE = 2**13  # columns


def suits(masks: Float[Tensor, "reader writer"], deltas: Tensor) -> bool:
    """Whether these masks are sparse enough, on a CPU whose library has the product."""
    if masks.is_cuda or deltas.device.type != "cpu" or not torch.backends.mkl.is_available():
        return False
    known = deltas.dtype in (torch.float32, torch.float64)
    return known and masks.numel() > 0 and int(masks.count_nonzero()) < DENSEST * masks.numel()


def add_product(
    out: Float[Tensor, "row number"], factors: Float[Tensor, "row inner"], x: Float[Tensor, "inner number"]
) -> None:
    """`out += factors @ x`, in place."""
    rows = _compressed(factors)
    for start in range(0, out.shape[1], PIECE):
        piece = out[:, start : start + PIECE]
        torch.addmm(piece, rows, x[:, start : start + PIECE], out=piece)


def product_at(
    wanted: Bool[Tensor, "row column"], a: Float[Tensor, "row number"], b: Float[Tensor, "column number"]
) -> Float[Tensor, "row column"]:
    """`a @ b.T` at the wanted places, 0 elsewhere."""
    found = _compressed(wanted.to(a.dtype))
    for start in range(0, a.shape[1], PIECE):
        columns = slice(start, start + PIECE)
        found = torch.sparse.sampled_addmm(found, a[:, columns], b[:, columns].t(), beta=float(start > 0))
    return found.to_dense()


def _compressed(matrix: Float[Tensor, "row column"]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()
