"""Norms known by what they do: which of the usual kinds a module is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.model.linear import with_memory


@dataclass(frozen=True)
class Affine:
    """A norm over the last axis with a gain, as this module computes it.

    Attributes:
        module: where weight and shift are.
        eps: added to the variance.
        centred: True subtracts the mean (LayerNorm), False does not (RMSNorm).
        one_more: True where the gain is 1 + weight (Gemma), False where it is the weight.
    """

    module: nn.Module
    eps: float
    centred: bool
    one_more: bool = False

    @property
    def weight(self) -> Float[Tensor, "d"]:
        """The module's own parameter."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def gain(self) -> Float[Tensor, "d"]:
        """The factor on each coordinate."""
        weight = self.weight
        return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32)) if self.one_more else weight

    @property
    def shift(self) -> Float[Tensor, "d"] | None:
        """What is added to each coordinate, if anything."""
        return getattr(self.module, "bias", None)

    def apply(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The norm itself, term by term."""
        mean, factor = statistics(x, self.eps, self.centred)
        normed = (x if mean is None else x - mean) * factor * self.gain
        return normed if self.shift is None else normed + self.shift


def statistics(
    x: Float[Tensor, "*rows d"], eps: float, centred: bool
) -> tuple[Float[Tensor, "*rows one"] | None, Float[Tensor, "*rows one"]]:
    """Mean (None if it stays) and 1 / sqrt(variance + eps) of each row, in float32 or better."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if centred:
        variance, mean = torch.var_mean(x.to(wide), -1, correction=0, keepdim=True)
        return mean, (variance + eps).rsqrt()
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()
    return None, (square / x.shape[-1] + eps).rsqrt()


@torch.no_grad()
def recognise(module: nn.Module) -> Affine | None:
    """A module as `Affine`, if that is what it does to random vectors; None for any other norm, or without weights.

    On the meta device, where nothing can be tried, a twin with random weights is tried instead.
    """
    weight = getattr(module, "weight", None)
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not weight.numel() or eps is None:
        return None
    generator = torch.Generator().manual_seed(0)
    twin: Any = with_memory(module)
    weight = twin.weight
    probe = torch.randn(4, len(weight), generator=generator, device="cpu").add(0.5).to(weight.device, weight.dtype)
    half = weight.dtype == torch.float16  # which is wider than bfloat16 in nothing but digits
    tolerance = 8 * torch.finfo(weight.dtype if half else torch.promote_types(weight.dtype, torch.bfloat16)).eps
    expected = twin(probe).float()
    for centred, one_more in itertools.product((False, True), repeat=2):
        found = Affine(twin, float(eps), centred, one_more).apply(probe).float()
        if bool((expected - found).abs().max() <= tolerance * expected.abs().max()):
            return Affine(module, float(eps), centred, one_more)
    return None
