"""Norm and projection of many readers at once: each has its own stream, all share one norm.

With gain g and shift b, and the norm's own factor s = 1 / sqrt(variance + eps) of each token, a head's vectors are

    norm(x) W + c = s (x W') + (b W + c)        W' = diag(g) W, its columns centred where the norm subtracts the mean

so the normed streams, by far the largest tensors of an edge-masked forward, never exist: what is kept for the backward
pass is the streams themselves, s and the (narrow) projections. On a GPU `masked/gpu/projection.py` does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from circuitlit.masked.kernels import fused
from circuitlit.model.norms import Affine, statistics
from circuitlit.products import batched_product

LARGEST = 2**26  # bytes of folded weights that are kept; larger ones are folded anew each time, or in the kernel


Room = Callable[[], Float[Tensor, "reader token d"]]
Again = Room  # makes streams anew


class Projection:
    """`norm(x[r]) @ weight[r] + bias[r]` for all readers; the weights of consecutive readers come in parts.

    Frozen weights only: no gradient reaches norm, weights or biases.

    Args:
        norm: what all readers share.
        weights: of consecutive readers.
        biases: likewise; None for none.
        keep: False folds the weights anew in each call (they may be gone in between).
    """

    def __init__(
        self,
        norm: Affine,
        weights: list[Float[Tensor, "_ d out"]],
        biases: list[Float[Tensor, "_ out"] | None],
        keep: bool = True,
    ) -> None:
        self.norm, self.weights, self.biases = norm, weights, biases
        size = sum(weight.numel() * weight.itemsize for weight in weights)
        self.keep = keep and size <= LARGEST
        self._known: tuple[tuple[int, ...], Tensor, Tensor | None] | None = None

    def __call__(
        self, x: Float[Tensor, "reader token d"], room: Room | None = None, again: Again | None = None
    ) -> Float[Tensor, "reader token out"]:
        """Project; the gradient for x is written to `room()`, or to a new tensor.

        With `again`, which gives x anew, x is not kept.
        """
        return _NormedProjection.apply(x, self, room, again)  # type: ignore[return-value]

    def folded(self) -> tuple[Float[Tensor, "reader d out"], Float[Tensor, "reader one out"] | None]:
        """The weights W' side by side, and what every token gets: b W + c."""
        if not self.keep:
            return self._fold()
        used = [*self.weights, self.norm.weight, *(b for b in (*self.biases, self.norm.shift) if b is not None)]
        key = tuple(number for tensor in used for number in (tensor.data_ptr(), tensor._version))
        if self._known is None or self._known[0] != key:
            self._known = (key, *self._fold())
        return self._known[1:]

    def for_kernels(
        self,
    ) -> tuple[Tensor | list[Tensor], Float[Tensor, "reader one out"] | None, Float[Tensor, "d"] | None]:
        """Weights, what every token gets, and the gain, None where it is in the weights.

        A gain need not be folded into weights that are not kept: the kernels apply it to narrower tensors on the way.
        """
        if self.keep or self.norm.centred:
            return *self.folded(), None
        return self.weights, self.constant(), self.norm.gain

    @torch.no_grad()
    def _fold(self) -> tuple[Tensor, Tensor | None]:
        norm, weights = self.norm, self.weights
        folded = weights[0].new_empty(sum(map(len, weights)), *weights[0].shape[1:])
        row = 0
        for weight in weights:
            torch.mul(weight, norm.gain[:, None], out=folded[row : row + len(weight)])
            row += len(weight)
        if norm.centred:
            folded.sub_(folded.mean(1, keepdim=True))
        return folded, self.constant()

    @torch.no_grad()
    def constant(self) -> Float[Tensor, "reader one out"] | None:
        """What every token gets: b W + c."""
        norm, weights = self.norm, self.weights
        if norm.shift is None and all(bias is None for bias in self.biases):
            return None
        parts = []
        for weight, bias in zip(weights, self.biases, strict=True):
            part = weight.new_zeros(len(weight), weight.shape[2]) if bias is None else bias
            if norm.shift is not None:
                part = part + torch.bmm(norm.shift.expand(len(weight), 1, -1), weight)[:, 0]
            parts.append(part)
        return torch.cat(parts)[:, None]


def plain_project(
    x: Float[Tensor, "reader token d"],
    weight: Float[Tensor, "reader d out"],
    constant: Float[Tensor, "reader one out"] | None,
    eps: float,
    centred: bool,
) -> tuple[
    Float[Tensor, "reader token out"], Float[Tensor, "reader token one"] | None, Float[Tensor, "reader token one"]
]:
    """`norm(x) W + c` with the norm folded into the weights; also each token's mean (where it matters) and factor."""
    mean, factor = statistics(x, eps, centred)
    out = x.new_empty(*x.shape[:2], weight.shape[-1])
    batched_product(x, weight, out).mul_(factor.to(x.dtype))
    return (out if constant is None else out.add_(constant)), mean, factor


def plain_project_backward(
    grad: Float[Tensor, "reader token out"],
    out: Float[Tensor, "reader token out"],
    x: Float[Tensor, "reader token d"],
    weight: Float[Tensor, "reader d out"],
    constant: Float[Tensor, "reader one out"] | None,
    mean: Float[Tensor, "reader token one"] | None,
    factor: Float[Tensor, "reader token one"],
    room: Float[Tensor, "reader token d"],
) -> None:
    """Write the gradient of `plain_project` for x to `room`."""
    made = out if constant is None else out - constant
    pull = (grad * made).sum(-1, keepdim=True, dtype=factor.dtype) * factor.square() / x.shape[-1]
    grad, weight = grad * factor.to(x.dtype), weight.transpose(1, 2)
    if mean is None:
        batched_product(grad, weight, room)
    else:
        torch.baddbmm((pull * mean).to(x.dtype), grad, weight, out=room)
    room.addcmul_(x, pull.to(x.dtype), value=-1)


class _NormedProjection(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Projection, room: Room | None, again: Again | None) -> Tensor:
        norm = projection.norm
        if fused(x):
            from circuitlit.masked.gpu.projection import project

            weight, constant, gain = projection.for_kernels()
            out, mean, factor = project(x, weight, constant, norm.eps, norm.centred, gain)
        else:
            out, mean, factor = plain_project(x, *projection.folded(), norm.eps, norm.centred)
        ctx.projection, ctx.norm = projection if projection.keep else None, norm
        ctx.room, ctx.again = room, again
        lent = [] if projection.keep else [*projection.weights, *projection.biases]
        ctx.save_for_backward(None if again else x, out, mean, factor, *lent)  # recomputing lets go of what is saved
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, out, mean, factor, *lent = ctx.saved_tensors
        x = ctx.again() if x is None else x
        half = len(lent) // 2
        projection = ctx.projection or Projection(ctx.norm, lent[:half], lent[half:], keep=False)
        room, grad = torch.empty_like(x) if ctx.room is None else ctx.room(), grads[0].contiguous()
        if fused(x):
            from circuitlit.masked.gpu.projection import project_backward

            weight, constant, gain = projection.for_kernels()
            project_backward(grad, out, x, weight, constant, mean, factor, room, gain)
        else:
            weight, constant = projection.folded()
            plain_project_backward(grad, out, x, weight, constant, mean, factor, room)
        return room, None, None, None
