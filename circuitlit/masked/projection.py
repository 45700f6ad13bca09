"""Norm and projection of many readers at once: each has its own stream, all share one norm.

With gain g and shift b, and the norm's own factor s = 1 / sqrt(variance + eps) of each token, a head's vectors are

    norm(x) W + c = s (x W') + (b W + c)        W' = diag(g) W, its columns centred where the norm subtracts the mean

so the normed streams, by far the largest tensors of an edge-masked forward, never exist: what is kept for the backward
pass is the streams themselves, s and the (narrow) projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function


@dataclass(frozen=True)
class Affine:
    """A norm over the last axis with a gain, as this module computes it.

    Attributes:
        module: where gain and shift are.
        eps: added to the variance.
        centred: True subtracts the mean (LayerNorm), False does not (RMSNorm).
    """

    module: nn.Module
    eps: float
    centred: bool

    @property
    def gain(self) -> Float[Tensor, "d"]:
        """The factor on each coordinate."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def shift(self) -> Float[Tensor, "d"] | None:
        """What is added to each coordinate, if anything."""
        return getattr(self.module, "bias", None)

    def apply(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The norm itself, term by term."""
        mean, factor = self.statistics(x)
        normed = (x if mean is None else x - mean) * factor * self.gain
        return normed if self.shift is None else normed + self.shift

    def statistics(
        self, x: Float[Tensor, "*rows d"]
    ) -> tuple[Float[Tensor, "*rows one"] | None, Float[Tensor, "*rows one"]]:
        """Mean (None if it stays) and 1 / sqrt(variance + eps) of each row, in float32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.centred:
            variance, mean = torch.var_mean(x.to(wide), -1, correction=0, keepdim=True)
            return mean, (variance + self.eps).rsqrt()
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()
        return None, (square / x.shape[-1] + self.eps).rsqrt()


@torch.no_grad()
def recognise(module: nn.Module) -> Affine | None:
    """A module as `Affine`, if that is what it does to random vectors; None for any other norm, or without weights.

    On the meta device, where nothing can be tried, a norm with gain and eps is believed to be one.
    """
    weight = getattr(module, "weight", None)
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not weight.numel() or eps is None:
        return None
    norm = Affine(module, float(eps), centred=isinstance(module, nn.LayerNorm))
    if weight.is_meta:
        return norm
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, len(weight), generator=generator).add(0.5).to(weight.device, weight.dtype)
    tolerance = 8 * torch.finfo(torch.promote_types(weight.dtype, torch.bfloat16)).eps
    expected, found = module(probe).float(), norm.apply(probe).float()
    return norm if bool((expected - found).abs().max() <= tolerance * expected.abs().max()) else None


def normed_projection(
    x: Float[Tensor, "reader token d"],
    norm: Affine,
    weights: list[Float[Tensor, "_ d out"]],
    biases: list[Float[Tensor, "_ out"] | None],
) -> Float[Tensor, "reader token out"]:
    """`norm(x[r]) @ weight[r] + bias[r]` for all readers; the weights of consecutive readers come in parts.

    Frozen weights only: no gradient reaches norm, weights or biases.
    """
    return _NormedProjection.apply(x, norm, weights, biases)  # type: ignore[return-value]


def _folded(norm: Affine, weights: list[Tensor]) -> Float[Tensor, "reader d out"]:
    """The weights W', side by side."""
    folded = weights[0].new_empty(sum(map(len, weights)), *weights[0].shape[1:])
    row = 0
    for weight in weights:
        torch.mul(weight, norm.gain[:, None], out=folded[row : row + len(weight)])
        row += len(weight)
    return folded.sub_(folded.mean(1, keepdim=True)) if norm.centred else folded


def _constant(
    norm: Affine, weights: list[Tensor], biases: list[Tensor | None]
) -> Float[Tensor, "reader one out"] | None:
    """What every token gets: b W + c."""
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        part = weight.new_zeros(len(weight), weight.shape[2]) if bias is None else bias
        parts.append(
            part if norm.shift is None else part + torch.bmm(norm.shift.expand(len(weight), 1, -1), weight)[:, 0]
        )
    if norm.shift is None and all(bias is None for bias in biases):
        return None
    return torch.cat(parts)[:, None]


class _NormedProjection(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Affine, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        mean, factor = norm.statistics(x)
        projected = torch.bmm(x, _folded(norm, weights))
        ctx.norm, ctx.weights = norm, weights
        ctx.save_for_backward(x, mean, factor, projected)
        constant = _constant(norm, weights, biases)
        scaled = projected * factor.to(x.dtype)
        return scaled if constant is None else scaled.add_(constant)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, mean, factor, projected = ctx.saved_tensors
        (grad,) = grads
        inner = (grad * projected).sum(-1, keepdim=True, dtype=factor.dtype)
        pull = inner * factor.pow(3) / x.shape[-1]
        weight = _folded(ctx.norm, ctx.weights).transpose(1, 2)
        grad = grad * factor.to(x.dtype)
        back = (pull * mean).to(x.dtype) if mean is not None else None
        grad_x = torch.bmm(grad, weight) if back is None else torch.baddbmm(back, grad, weight)
        return grad_x.addcmul_(x, pull.to(x.dtype), value=-1), None, None, None
