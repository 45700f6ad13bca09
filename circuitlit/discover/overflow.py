"""Gradients that float32 cannot hold: they are left out, counted and told, so that a training goes on without them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 1e18  # Adam keeps an average of squares, and those of larger ones are infinite in float32

log = logging.getLogger(__name__)


class Overflow:
    """Sets entries of gradients to 0 where they are no number or at least `LARGEST` in size.

    Where zeros stand in for cut edges, a normalisation may divide a sum of nothing by its tiny epsilon. A chain of such
    readers has a gradient that grows by the inverse of epsilon's root (316 for 1e-5) with every layer.

    Args:
        parameters: whose gradients.

    Attributes:
        passes: backward passes in which something was left out, counted once a parameter.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.passes: Tensor | int = 0
        for values in parameters:
            values.register_hook(self._without)

    def _without(self, grad: Float[Tensor, "*some"]) -> Float[Tensor, "*some"]:
        fits = grad.abs() < LARGEST  # which no nan is
        self.passes = self.passes + (~fits).any().long()  # a tensor of the device: nothing waits for it
        return torch.where(fits, grad, 0.0)

    def tell(self) -> None:
        """Say once how often that was, if it was."""
        if int(self.passes):
            log.warning(
                f"in {int(self.passes)} backward passes gradients of some masks overflowed and were left out; with "
                "model.dtype=float64, or another ablation than zero, fewer do"
            )
            self.passes = 0
