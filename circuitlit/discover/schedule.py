"""How sparsity, noise and learning rate move over a mask run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from circuitlit.discover.gates import mixed
from circuitlit.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """How sparsity, noise and learning rate move over a run; shares are of the run's steps.

    Attributes:
        steps: optimizer steps.
        lr: learning rate of the log-alphas at its height.
        lr_final: share of `lr` that is reached as the run ends; the decay is a half cosine after `lr_warmup` steps of
            linear rise.
        lr_warmup: steps of linear rise.
        start_sparsity: sparsity asked for at step 0, never above the target; None starts at the target.
        warmup: share of the run after which the target sparsity holds.
        fall: how the number of edges kept gets there: "geometric" (by equal factors) or "linear" (by equal numbers).
            Linear stays longer where few edges are off at a time, so that one that others need is seen to be needed.
        harden: share of the run, at its end, over which the gates' noise shrinks to `final_noise`.
        final_noise: noise scale that is reached as the run ends; 1 leaves the gates as they are.
        hard: share of the run, at its end, whose steps run the very circuit that a cut would give, without noise; the
            gradient passes straight through.
        sizes: least and largest share of edges kept, between which every step's size is drawn (uniformly in its
            logarithm); the run then ranks all sizes and has no target of its own. None holds the target.
    """

    steps: int
    lr: float
    lr_final: float = 0.1
    lr_warmup: int = 0
    start_sparsity: float | None = None
    warmup: float = 0.0
    fall: Literal["geometric", "linear"] = "geometric"
    harden: float = 0.0
    final_noise: float = 1.0
    hard: float = 0.0
    sizes: Sequence[float] | None = None

    def __post_init__(self) -> None:
        shares = ("lr_final", "warmup", "harden", "hard")
        wrong = [name for name in shares if not 0 <= getattr(self, name) <= 1]
        wrong += ["steps"] if self.steps < 1 else []
        wrong += ["lr"] if not self.lr >= 0 else []
        wrong += ["final_noise"] if not 0 < self.final_noise <= 1 else []
        wrong += ["start_sparsity"] if self.start_sparsity is not None and not 0 <= self.start_sparsity < 1 else []
        wrong += ["fall"] if self.fall not in ("geometric", "linear") else []
        if self.sizes is not None and (len(self.sizes) != 2 or not all(0 < size <= 1 for size in self.sizes)):
            wrong.append("sizes")
        if wrong:
            raise UserError(f"mask.schedule.{wrong[0]}={getattr(self, wrong[0])} is not a value that it can have")

    def open_share(self, step: int, target: float, seed: int = 0) -> float:
        """Share of edges kept in expectation at a step; `seed` matters for drawn sizes alone."""
        if self.sizes is not None:
            least, largest = self.sizes
            return least * (largest / least) ** (mixed(seed, step) / 2**63)
        final = 1 - target
        if self.start_sparsity is None or self.warmup <= 0:
            return final
        progress = min(1.0, step / (self.warmup * self.steps))
        start = max(final, 1 - self.start_sparsity)
        if progress == 1:  # exactly, for a cut rounds it to a number of edges
            return final
        if self.fall == "linear":
            return start + (final - start) * progress
        return start * (final / start) ** progress

    def noise(self, step: int) -> float:
        """Scale of the gates' noise at a step, falling geometrically."""
        if self.harden <= 0:
            return 1.0
        progress = max(0.0, (step / self.steps - 1 + self.harden) / self.harden)
        return self.final_noise ** min(1.0, progress)

    def is_hard(self, step: int) -> bool:
        """Whether a step runs the circuit itself."""
        return step >= (1 - self.hard) * self.steps

    def lr_factor(self, step: int) -> float:
        """Share of `lr` at a step."""
        if step < self.lr_warmup:
            return (step + 1) / self.lr_warmup
        progress = min(1.0, (step - self.lr_warmup) / max(1, self.steps - self.lr_warmup))
        return self.lr_final + (1 - self.lr_final) * (1 + math.cos(math.pi * progress)) / 2
