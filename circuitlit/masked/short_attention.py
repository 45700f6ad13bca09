"""Attention of short prompts on a GPU: rotation, softmax and the ablated results in one launch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from circuitlit.masked.kernels import rotated
from circuitlit.model.layouts import Rotate

LONGEST = 128  # tokens of a prompt that the kernel takes


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of a batch, and the architecture's way to apply them."""

    rotate: Rotate
    cos: Float[Tensor, "one pos rotated"]
    sin: Float[Tensor, "one pos rotated"]


@functools.cache
def rotates_by_halves(rotate: Rotate) -> bool:
    """Whether a rotation does to random vectors what `kernels.rotated` does."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 3, 8, generator=generator, device="cpu") for _ in "qk")
    cos, sin = (torch.randn(1, 3, 4, generator=generator, device="cpu").repeat(1, 1, 2) for _ in "cs")
    found = rotate(q, k, cos, sin)
    return all(torch.allclose(x, rotated(y, cos, sin), atol=1e-5) for x, y in zip(found, (q, k), strict=True))


def kernel_attention(
    qkv: Float[Tensor, "reader token out"],
    ablated: Float[Tensor, "batch pos width"],
    heads: int,
    kv: int,
    scale: float,
    rotary: Rotary | None,
) -> Float[Tensor, "head token out"]:
    """What every head's result is beyond its ablated one; queries, keys and values are the rows of `qkv`."""
    turning = (None, None) if rotary is None else (rotary.cos, rotary.sin)
    return _Attention.apply(qkv, ablated, *turning, heads, kv, scale)  # type: ignore[return-value]


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, ablated: Tensor, cos: Any, sin: Any, heads: int, kv: int, scale: float
    ) -> Tensor:
        from circuitlit.masked.gpu.attention import attend

        ctx.sizes = (len(ablated), heads, kv, scale)
        ctx.save_for_backward(qkv, cos, sin)
        return attend(qkv, ablated, heads, kv, scale, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        from circuitlit.masked.gpu.attention import attend_backward

        qkv, cos, sin = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_ablated = None
        if ctx.needs_input_grad[1]:
            grad_ablated = -grad.unflatten(1, (ctx.sizes[0], -1)).permute(1, 2, 0, 3).flatten(2)
        batch, heads, kv, scale = ctx.sizes
        made = attend_backward(grad, qkv, batch, heads, kv, scale, cos, sin)
        return made, grad_ablated, None, None, None, None, None
