"""Mask learning with a given number of edges in common with other circuits: two constraints in the place of one.

All edges are in two parts: inside are those of the circuits that are known, outside are all others. Each part has a
shift of its own, so both expected sizes are exact, and no weight of a penalty has to be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.discover.gates import Gates, Scale, logistic_noise
from circuitlit.discover.learn import HARD_WIDTH, MaskLearner
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.schedule import Schedule
from circuitlit.errors import UserError
from circuitlit.graph.select import top_k
from circuitlit.masked import References

Parts = Sequence[Int[Tensor, "_"]]  # numbers of the masks inside and outside


@torch.no_grad()
def shifts(
    gates: Gates, log_alpha: Float[Tensor, "mask"], parts: Parts, counts: Sequence[float], scale: float, cut: bool
) -> Float[Tensor, "mask"]:
    """What, added to the log-alphas, makes the expected number of open gates exact in every part.

    Args:
        gates: the family.
        log_alpha: of all gates.
        parts: numbers of the gates of each part.
        counts: open gates asked for in each.
        scale: of the noise.
        cut: True puts the very gates that a cut keeps above the threshold.
    """
    found = torch.zeros_like(log_alpha)
    for part, count in zip(parts, counts, strict=True):
        if len(part):
            own, share = log_alpha[part], count / len(part)
            found[part] = gates.shift_to_cut(own, share) if cut else gates.shift_to(own, share, scale)
    return found


def held_apart(
    gates: Gates, log_alpha: Float[Tensor, "mask"], inside: Bool[Tensor, "mask"], scale: Scale
) -> Float[Tensor, "mask"]:
    """The same log-alphas with the gradients of both shifts: opening a gate closes others of its own part alone."""
    held = [gates.held(log_alpha, scale, lambda p, part=part: (p * part).mean()) for part in (inside, ~inside)]
    return torch.where(inside, *held)


def confident_apart(
    order: Float[Tensor, "mask"], parts: Parts, counts: Sequence[int], scale: float
) -> Float[Tensor, "mask"]:
    """Log-alphas to start from: in each part as many as it may keep, the best, at +scale, the others at -scale."""
    found = torch.full(order.shape, -scale)
    for part, count in zip(parts, counts, strict=True):
        found[part[top_k(order[part], count)]] = scale
    return found


@dataclass(frozen=True)
class PartedSampler:
    """Masks of log-alphas and noise under two constraints. Equal settings are captured once, whatever the parts are.

    Attributes:
        gates: the family.
        hard: True gives masks of exactly 0 and 1, without noise.
    """

    gates: Gates
    hard: bool

    def __call__(
        self,
        log_alpha: Float[Tensor, "mask"],
        noise: Float[Tensor, "mask"],
        scale: Float[Tensor, ""],
        inside: Bool[Tensor, "mask"],
    ) -> Float[Tensor, "mask"]:
        """The masks; `scale` is that of the noise."""
        held = held_apart(self.gates, log_alpha, inside, scale)
        return self.gates.hard(held, scale) if self.hard else self.gates.sample(held, noise, scale)


class OverlapLearner(MaskLearner):
    """Trains a circuit that has exactly as many edges in common with given ones as it is asked for.

    Each part follows the schedule to a size of its own, but what is to keep no edge has none from the beginning.

    Args:
        loss: the objective under masks; masks on edges only.
        references: teacher and ablated writers.
        initial: log-alphas to start from.
        inside: the edges of the given circuits.
        counts: edges to keep inside and outside.
        schedule: how the run goes.
        gates: the gates' family.
        seed: of the gates' noise.

    Raises:
        UserError: masks on nodes, or more edges asked for than a part has.
    """

    inside: Tensor

    def __init__(
        self,
        loss: MaskedLoss,
        references: References,
        initial: Float[Tensor, "mask"],
        inside: Bool[Tensor, "mask"],
        counts: tuple[int, int],
        schedule: Schedule,
        gates: Gates | None = None,
        seed: int = 0,
    ) -> None:
        if loss.layout.sites != "edges":
            raise UserError("an overlap of edges cannot be held by masks on nodes; set mask.sites=edges")
        self.counts, total = counts, inside.numel()
        if counts[0] > int(inside.sum()) or counts[1] > total - int(inside.sum()):
            raise UserError(f"{counts} edges are not there inside and outside; ask for a smaller circuit")
        super().__init__(loss, references, initial, 1 - sum(counts) / total, schedule, gates, seed, True)
        self.register_buffer("inside", inside, persistent=False)

    def part_sizes(self, step: int) -> tuple[float, float]:
        """Expected numbers of open gates inside and outside at a step."""
        inside, outside = (
            len(part) * self.schedule.open_share(step, 1 - count / len(part), self.seed) if count else 0.0
            for part, count in zip(self._parts, self.counts, strict=True)
        )
        return inside, outside

    @property
    def _parts(self) -> Parts:
        if not hasattr(self, "_numbers") or self._numbers[0].device != self.inside.device:
            self._numbers = [part.nonzero()[:, 0] for part in (self.inside, ~self.inside)]
        return self._numbers

    def _shift(self, step: int) -> Float[Tensor, "mask"]:
        noise, hard = self.schedule.noise(step), self.schedule.is_hard(step)
        return shifts(self.gates, self.log_alpha, self._parts, self.part_sizes(step), noise, hard)

    def _sampler(self, step: int, micro_batch: int) -> tuple[PartedSampler, tuple[Tensor, ...]]:  # type: ignore[override]
        hard = self.schedule.is_hard(step)
        noise = logistic_noise(self.log_alpha.numel(), self.seed, step, micro_batch, self.device)
        scale = torch.tensor(HARD_WIDTH if hard else self.schedule.noise(step))
        inputs = noise, scale.to(self.device, non_blocking=True), self.inside
        return PartedSampler(self.gates, hard), inputs

    def kept(self) -> Bool[Tensor, "mask"]:
        """The best edges of each part, exactly as many as asked for."""
        found, order = torch.zeros(self.inside.numel(), dtype=torch.bool), self.log_alpha.detach().cpu()
        for part, count in zip(self._parts, self.counts, strict=True):
            found[part.cpu()[top_k(order[part.cpu()], count)]] = True
        return found
