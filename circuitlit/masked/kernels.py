"""Mixing writers into readers: the two products that an edge mask costs (edges x tokens x width each).

On a GPU Triton kernels (`masked/gpu/`) can take over, if `use` says so. These are their twins, and what runs elsewhere.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.masked import sparse
from circuitlit.products import product

CHOICES = ("auto", "torch", "triton")
FUSED = (torch.float32, torch.bfloat16, torch.float16)
_choice = "auto"


def use(choice: str) -> None:
    """Choose kernels for all masked models of this process: "auto" takes Triton's on a GPU, "torch" never.

    Raises:
        UserError: no such choice, or "triton" where it is missing.
    """
    global _choice
    if choice not in CHOICES:
        raise UserError(f"mask.kernels={choice} is not one of {', '.join(CHOICES)}")
    if choice == "triton" and not _available():
        raise UserError("mask.kernels=triton needs a CUDA GPU and the package triton; leave it at auto")
    _choice = choice


@functools.cache
def _available() -> bool:
    found = importlib.util.find_spec("triton") is not None
    return found and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")


def fused(like: Tensor) -> bool:
    """Whether Triton kernels work on a tensor of this kind."""
    if _choice == "torch" or like.dtype not in FUSED:
        return False
    return _available() and (like.is_cuda or _choice == "triton")


def streamed(like: Tensor) -> bool:
    """Whether a kernel mixes deltas of this kind faster than the library's product: where they are half as wide."""
    return like.dtype in (torch.bfloat16, torch.float16)


def mix(
    out: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "copies reader writer"],
    deltas: Float[Tensor, "writer token d"],
    groups: list[Int[Tensor, "_"]] | None = None,
    add: bool = True,
) -> None:
    """Add `sum_w masks[r, w] * deltas[w]` to every reader, in place.

    Args:
        out: contiguous; receives the sum.
        masks: one matrix for all tokens, or one for each group of tokens.
        deltas: contiguous.
        groups: token indices of each copy of the masks; None for a single copy.
        add: False writes the sum over what is there.
    """
    masks = masks.to(deltas.dtype)
    if groups is None and not sparse.suits(masks[0], deltas):
        out.flatten(1).addmm_(masks[0], deltas.flatten(1), beta=1 if add else 0)
        return
    if not add:
        out.zero_()
    if groups is None:
        sparse.add_product(out.flatten(1), masks[0], deltas.flatten(1))
        return
    for matrix, tokens in zip(masks, groups, strict=True):
        part = matrix @ deltas[:, tokens].flatten(1)
        out.index_add_(1, tokens, part.view(len(matrix), len(tokens), deltas.shape[-1]))


def mix_backward(
    grad_out: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "copies reader writer"],
    deltas: Float[Tensor, "writer token d"],
    grad_deltas: Float[Tensor, "writer token d"],
    groups: list[Int[Tensor, "_"]] | None = None,
    between: bool = False,
) -> Float[Tensor, "copies reader writer"]:
    """Gradient of `mix` for the masks; the gradient for the deltas is added to `grad_deltas` in place.

    With `between`, nobody asks for the gradients of masks of exactly 0 or 1, and they may be left at 0.
    """
    masks = masks.to(deltas.dtype)
    if groups is None:
        grad, flat = grad_out.flatten(1), deltas.flatten(1)
        if not sparse.suits(masks[0], deltas):
            grad_deltas.flatten(1).addmm_(masks[0].t(), grad)
            return _summed_over_tokens(grad, flat)[None]
        sparse.add_product(grad_deltas.flatten(1), masks[0].t(), grad)
        if between:
            return sparse.product_at((masks[0] > 0) & (masks[0] < 1), grad, flat)[None]
        return _summed_over_tokens(grad, flat)[None]
    grad_masks = masks.new_empty(masks.shape)
    for copy, tokens in enumerate(groups):
        grad = grad_out[:, tokens].flatten(1)
        part = masks[copy].t() @ grad
        grad_deltas.index_add_(1, tokens, part.view(len(part), len(tokens), deltas.shape[-1]))
        grad_masks[copy] = grad @ deltas[:, tokens].flatten(1).t()
    return grad_masks


def _summed_over_tokens(
    grad: Float[Tensor, "reader number"], deltas: Float[Tensor, "writer number"]
) -> Float[Tensor, "reader writer"]:
    """The masks' gradient; half a million rounded terms are summed, and handed out, in float32 where that is free."""
    if grad.is_cuda and grad.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(grad, deltas.t(), out_dtype=torch.float32)
    return product(grad, deltas.t())


def rotated(
    x: Float[Tensor, "*heads pos width"], cos: Float[Tensor, "#one pos part"], sin: Float[Tensor, "#one pos part"]
) -> Float[Tensor, "*heads pos width"]:
    """The first `part` columns rotated by halves, as Llama and GPT-NeoX do; the others as they are."""
    turning, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turning.chunk(2, -1)
    return torch.cat([turning * cos + torch.cat([-second, first], -1) * sin, still], -1)
