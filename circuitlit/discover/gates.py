"""Gates: random or soft masks with a real number behind each, and the constraint that keeps their expected size.

A gate's number is its log-alpha. The constraint is held by one scalar that shifts all log-alphas, found by bisection,
so every family of gates delivers the size that the schedule asks for. `scale` multiplies the gate's noise (or its
temperature, where it has no noise): towards 0 a gate becomes a deterministic function of its log-alpha, so that a run
can end on the very circuit that it is going to be cut to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores, MaskLayout
from circuitlit.masked.kernels import fused

BISECTIONS = 50
ONE_BLOCK = 2**18  # more gates than that are too many for one multiprocessor
HALVINGS = 34  # after which a search that is all in float32 no longer moves
SHARP = 1e-4  # a noise scale at which the expected number of open gates is the number of those above the threshold
SPREAD = 60.0  # noise scales beyond the outermost gates at which the search begins
Measure = Callable[[Float[Tensor, "mask"]], Float[Tensor, ""]]

Scale = float | Float[Tensor, ""]  # a tensor where the step is captured


class Gates(ABC):
    """One family of gates.

    Attributes:
        name: of the method, for results.
        flat_ends: True where a sampled mask of exactly 0 or 1 has no gradient.
    """

    name: ClassVar[str]
    flat_ends: ClassVar[bool] = False

    @abstractmethod
    def sample(
        self, log_alpha: Float[Tensor, "mask"], noise: Float[Tensor, "mask"], scale: Scale = 1.0
    ) -> Float[Tensor, "mask"]:
        """Mask values in [0, 1], differentiable in `log_alpha`; `noise` is standard logistic."""

    def open_probability(self, log_alpha: Float[Tensor, "mask"], scale: Scale = 1.0) -> Float[Tensor, "mask"]:
        """Expected size that each mask adds: its probability of being open, or its soft value."""
        return torch.sigmoid((log_alpha - self.threshold) / (self.softness * scale))

    @property
    def softness(self) -> float:
        """Width of the sigmoid from log-alpha to `open_probability`, at scale 1."""
        return 1.0

    @property
    def threshold(self) -> float:
        """Log-alpha at which a gate is open with probability one half."""
        return 0.0

    def hard(self, log_alpha: Float[Tensor, "mask"], scale: Scale) -> Float[Tensor, "mask"]:
        """Masks of exactly 0 and 1, open above the threshold, with the gradient of `open_probability` straight through.

        Source: the straight-through estimator, Bengio et al. (arXiv 1308.3432), section 4.
        """
        soft = self.open_probability(log_alpha, scale)
        return (log_alpha.detach() > self.threshold).to(soft) + (soft - soft.detach())

    def scores(
        self, layout: MaskLayout, log_alpha: Float[Tensor, "copies edge"], method: str, details: dict[str, object]
    ) -> EdgeScores:
        """Log-alphas of edges as scores, which weigh the probability that a gate of this family is open."""
        return EdgeScores(
            layout.graph,
            log_alpha,
            method,
            layout.roles,
            details=details,
            kind="gate",
            threshold=self.threshold,
            softness=self.softness,
        )

    def held(
        self, log_alpha: Float[Tensor, "mask"], scale: Scale = 1.0, measure: Measure = torch.mean
    ) -> Float[Tensor, "mask"]:
        """The same log-alphas, with the gradient of the shift that holds the constraint.

        The shift s solves F(a + s) = const with F the expected size, so ds/da_i = -F'_i / sum F'.
        """
        with torch.enable_grad():
            leaf = log_alpha.detach().requires_grad_()
            (slope,) = torch.autograd.grad(measure(self.open_probability(leaf, scale)), leaf)
        share = slope / slope.sum().clamp(min=1e-12)
        return log_alpha - ((log_alpha - log_alpha.detach()) * share).sum()

    @torch.no_grad()
    def shift_to(
        self, log_alpha: Float[Tensor, "mask"], share: float, scale: float = 1.0, measure: Measure = torch.mean
    ) -> Float[Tensor, ""]:
        """The scalar that, added to all log-alphas, makes the expected size exactly `share`.

        Bisection of fixed length on the device: no synchronisation, the same result on every rank.

        Args:
            log_alpha: of all gates.
            share: of the edges that is to be kept, between 0 and 1.
            scale: of the noise.
            measure: from the gates' open probabilities to the expected share of edges kept; the mean, where every gate
                is one edge.
        """
        if measure is torch.mean and log_alpha.numel() <= ONE_BLOCK and fused(log_alpha):
            from circuitlit.masked.gpu.shift import shift

            return shift(log_alpha, share, self.threshold, self.softness * scale, SPREAD * scale, HALVINGS)
        return self.bisected(log_alpha, share, scale, measure)

    @torch.no_grad()
    def shift_to_cut(
        self, log_alpha: Float[Tensor, "mask"], share: float, measure: Measure = torch.mean
    ) -> Float[Tensor, ""]:
        """The scalar that, added to all log-alphas, puts those that a cut keeps above the threshold and no others."""
        kept = round(share * log_alpha.numel())
        if measure is torch.mean and 0 < kept < log_alpha.numel():  # every gate is one edge: no search needed
            return self.threshold - log_alpha.topk(kept + 1).values[-2:].mean()
        return self.bisected(log_alpha, share, SHARP, measure)

    @torch.no_grad()
    def bisected(
        self, log_alpha: Float[Tensor, "mask"], share: float, scale: float = 1.0, measure: Measure = torch.mean
    ) -> Float[Tensor, ""]:
        """`shift_to` by plain operators."""
        spread = SPREAD * scale
        low = self.threshold - log_alpha.max() - spread
        high = self.threshold - log_alpha.min() + spread
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_many = measure(self.open_probability(log_alpha + middle, scale)) > share
            low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
        return (low + high) / 2


@dataclass(frozen=True)
class HardConcrete(Gates):
    """A stretched and clipped binary concrete variable: exactly 0 and exactly 1 have probability above 0.

    Attributes:
        temperature: of the sigmoid; smaller means fewer values strictly between 0 and 1.
        low, high: ends of the stretched interval, below 0 and above 1.

    Source: Louizos et al., "Learning Sparse Neural Networks through L0 Regularization" (arXiv 1712.01312), section
    2.2-2.3; scale 1 is the paper's gate.
    """

    name: ClassVar[str] = "hard_concrete"
    flat_ends: ClassVar[bool] = True
    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not self.low < 0 or not self.high > 1:
            raise UserError(
                f"mask.gates: temperature={self.temperature} must be above 0, low={self.low} below 0 and "
                f"high={self.high} above 1"
            )

    def sample(
        self, log_alpha: Float[Tensor, "mask"], noise: Float[Tensor, "mask"], scale: Scale = 1.0
    ) -> Float[Tensor, "mask"]:
        """Gate values in [0, 1]; `noise` is standard logistic, `scale` shrinks it."""
        soft = torch.sigmoid((scale * noise + log_alpha) / self.temperature)
        return (soft * (self.high - self.low) + self.low).clamp(0, 1)

    @property
    def threshold(self) -> float:
        """Log-alpha plus noise above which a gate is open at all."""
        return self.temperature * math.log(-self.low / self.high)


@dataclass(frozen=True)
class SigmoidTopK(Gates):
    """Soft masks without noise, `sigmoid((s - tau) / T)` with tau such that they add up to the size asked for.

    Attributes:
        temperature: T at scale 1.

    Source: MAttr (arXiv 2609.25518): tau by bisection and the gradient through it by implicit differentiation, which
    are `shift_to` and `held` here. With a random size at every step (`Schedule.sizes`) one run ranks every size.
    """

    name: ClassVar[str] = "sigmoid_topk"
    temperature: float = 0.5

    def sample(
        self, log_alpha: Float[Tensor, "mask"], noise: Float[Tensor, "mask"], scale: Scale = 1.0
    ) -> Float[Tensor, "mask"]:
        """The soft masks; `noise` plays no part."""
        return self.open_probability(log_alpha, scale)

    @property
    def softness(self) -> float:
        """The temperature."""
        return self.temperature


@dataclass(frozen=True)
class UniformGradient(Gates):
    """Bernoulli masks whose gradient is measured at uniformly drawn values between 0 and 1.

    A mask of probability t is a uniform number with probability t (1 - t), and otherwise 1 or 0, with mean t. The
    loss's derivative at a uniform number is an unbiased estimate of loss(1) - loss(0), and t (1 - t) is the slope of
    the sigmoid, so that derivative, where the number was drawn, is the gradient for the log-alpha.

    Source: uniform gradient sampling, Li and Janson, "Optimal ablation for interpretability" (arXiv 2409.09951). They
    penalise the size; here it is held.
    """

    name: ClassVar[str] = "uniform_gradient"

    def sample(
        self, log_alpha: Float[Tensor, "mask"], noise: Float[Tensor, "mask"], scale: Scale = 1.0
    ) -> Float[Tensor, "mask"]:
        """Values 0, 1, or uniform between."""
        chance = self.open_probability(log_alpha.detach(), scale)
        between = chance * (1 - chance)
        uniform = torch.sigmoid(noise)
        partial = uniform < between
        value = torch.where(partial, uniform / between.clamp(min=1e-12), (uniform < chance + between / 2).to(chance))
        return value + (log_alpha - log_alpha.detach()) / scale * partial


@dataclass(frozen=True)
class Sampler:
    """Masks of log-alphas and noise. Equal settings are equal samplers, whose steps are captured once.

    Attributes:
        gates: the family.
        held: True lets the gradient know of the shift that holds the constraint.
        measure: from the gates' open probabilities to the expected share of edges kept.
        hard: True gives masks of exactly 0 and 1, without noise.
    """

    gates: Gates
    held: bool
    measure: Measure
    hard: bool = False

    @property
    def between(self) -> bool:
        """Whether masks of exactly 0 and 1 have no gradient, so that the model need not compute it."""
        return self.gates.flat_ends and not self.hard

    def __call__(
        self, log_alpha: Float[Tensor, "mask"], noise: Float[Tensor, "mask"], scale: Float[Tensor, ""]
    ) -> Float[Tensor, "mask"]:
        """The masks; `scale` is that of the noise."""
        held = self.gates.held(log_alpha, scale, self.measure) if self.held else log_alpha
        return self.gates.hard(held, scale) if self.hard else self.gates.sample(held, noise, scale)


def logistic_noise(size: int, seed: int, step: int, micro_batch: int, device: torch.device) -> Float[Tensor, "mask"]:
    """Standard logistic noise that depends on (seed, step, micro-batch) alone.

    `micro_batch` counts within a step over all ranks, so one GPU that accumulates twice draws what two GPUs draw, and a
    resumed run draws what the unbroken one would have.
    """
    generator = torch.Generator(device).manual_seed(mixed(seed, step, micro_batch))
    uniform = torch.rand(size, generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
    return uniform.logit()


def mixed(*parts: int) -> int:
    """One 63-bit seed from several integers (multiply and xor-shift, as splitmix64 does)."""
    state = 0
    for part in parts:
        state = (state ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
