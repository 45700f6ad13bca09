"""Hard-concrete gates and the constraint that keeps their expected number open.

Source: Louizos et al., "Learning Sparse Neural Networks through L0 Regularization" (arXiv 1712.01312), section 2.2-2.3.
We add a noise scale: 1 is the paper's gate, and towards 0 the gate becomes a deterministic function of its log-alpha,
so that a run can end on the very circuit that it is going to be cut to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BISECTIONS = 50


@dataclass(frozen=True)
class HardConcrete:
    """The gate's distribution.

    Attributes:
        temperature: of the sigmoid; smaller means fewer values strictly between 0 and 1.
        low, high: ends of the stretched interval, below 0 and above 1.
    """

    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1

    def sample(
        self, log_alpha: Float[Tensor, "mask"], noise: Float[Tensor, "mask"], scale: float = 1.0
    ) -> Float[Tensor, "mask"]:
        """Gate values in [0, 1]; `noise` is standard logistic, `scale` shrinks it."""
        soft = torch.sigmoid((scale * noise + log_alpha) / self.temperature)
        return (soft * (self.high - self.low) + self.low).clamp(0, 1)

    @property
    def threshold(self) -> float:
        """Log-alpha plus noise above which a gate is open at all."""
        return self.temperature * math.log(-self.low / self.high)

    def open_probability(self, log_alpha: Float[Tensor, "mask"], scale: float = 1.0) -> Float[Tensor, "mask"]:
        """Probability that a gate is not 0: the expected L0 of one mask."""
        return torch.sigmoid((log_alpha - self.threshold) / scale)

    def held(self, log_alpha: Float[Tensor, "mask"], scale: float = 1.0) -> Float[Tensor, "mask"]:
        """The same log-alphas, with the gradient of the shift that holds the constraint.

        The shift s solves sum p(a_i + s) = const, so ds/da_i = -p'_i / sum p'.
        """
        with torch.no_grad():
            p = self.open_probability(log_alpha, scale)
            slope = p * (1 - p)
            share = slope / slope.sum().clamp(min=1e-12)
        return log_alpha - ((log_alpha - log_alpha.detach()) * share).sum()

    @torch.no_grad()
    def shift_to(self, log_alpha: Float[Tensor, "mask"], share: float, scale: float = 1.0) -> Float[Tensor, ""]:
        """The scalar that, added to all log-alphas, makes the expected share of open gates exactly `share`.

        Bisection of fixed length on the device: no synchronisation, the same result on every rank.
        """
        spread = 60.0 * scale
        low = self.threshold - log_alpha.max() - spread
        high = self.threshold - log_alpha.min() + spread
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_many = self.open_probability(log_alpha + middle, scale).mean() > share
            low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
        return (low + high) / 2


def logistic_noise(size: int, seed: int, step: int, micro_batch: int, device: torch.device) -> Float[Tensor, "mask"]:
    """Standard logistic noise that depends on (seed, step, micro-batch) alone.

    `micro_batch` counts within a step over all ranks, so one GPU that accumulates twice draws what two GPUs draw, and a
    resumed run draws what the unbroken one would have.
    """
    generator = torch.Generator(device).manual_seed(_mixed(seed, step, micro_batch))
    uniform = torch.rand(size, generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
    return uniform.logit()


def _mixed(*parts: int) -> int:
    """One 63-bit seed from several integers (multiply and xor-shift, as splitmix64 does)."""
    state = 0
    for part in parts:
        state = (state ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
