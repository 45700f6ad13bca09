"""One circuit for two models, and the few masks that must differ: a shared mask and a sparse difference mask.

With a the shared log-alphas, the base model's are a and the tuned model's a + g v: g is a hard-concrete gate that costs
a penalty for being open, v how far the edge moves. Both circuits are held at the same size, each by a scalar shift, so
that an edge enters the difference only where the models disagree on its worth, not to make either circuit larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning import LightningModule
from torch import Tensor, nn

from circuitlit.discover.gates import HardConcrete, logistic_noise
from circuitlit.discover.held_loss import HeldLoss
from circuitlit.discover.learn import Schedule
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.overflow import Overflow
from circuitlit.graph import EdgeScores
from circuitlit.graph.select import top_k
from circuitlit.masked import Reference, References
from circuitlit.tasks.pair import Batch

TESTED = 128  # edges of a circuit that are left out one by one
VARIANTS = 8  # of them, into one reader, at once; speed only
_OWN_NOISE = 7919  # keeps the difference gates' noise apart from the masks'


@dataclass(frozen=True)
class SparseDifference:
    """What was learned.

    Attributes:
        base, tuned: log-alphas of both circuits as scores.
        open: edges in the difference mask.
        change: of each edge's log-alpha from base to tuned, 0 outside the difference mask.
    """

    base: EdgeScores
    tuned: EdgeScores
    open: Bool[Tensor, "copies edge"]
    change: Float[Tensor, "copies edge"]


class DifferenceLearner(LightningModule):
    """Trains a shared mask and an L0-penalised difference mask on a base and a tuned model at once.

    The difference starts at nought with its gates half open; the penalty is 0 in the first third of the run (Adam would
    close all gates on ever so small a penalty before there is anything to open them for) and rises in the second. Both
    models see the same noise, so that without a difference they see the same masks.

    An edge that one model needs and the other does not mind costs nothing in the shared mask as long as there is room.
    So when training has ended, each edge of the tuned circuit is left out of both models in turn: what only one of them
    misses by the penalty belongs to the difference, too.

    Args:
        losses: of the base and of the tuned model, against their own full models.
        references: of both.
        initial: shared log-alphas to start from; masks on edges only.
        target: share of edges to be cut in each circuit.
        schedule: how the run goes.
        penalty: nats that an open difference gate costs.
        seed: of the noise.

    Source: L0 penalty by hard-concrete gates, Louizos et al. (arXiv 1712.01312) section 2; the difference form is ours.
    """

    def __init__(
        self,
        losses: Sequence[MaskedLoss],
        references: Sequence[References],
        initial: Float[Tensor, "mask"],
        target: float,
        schedule: Schedule,
        penalty: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(initial.float().clone())
        self.gate_alpha = nn.Parameter(torch.zeros_like(self.log_alpha))
        self.value = nn.Parameter(torch.zeros_like(self.log_alpha))
        self.losses, self.references = tuple(losses), tuple(references)
        self.target, self.schedule, self.penalty, self.seed = target, schedule, penalty, seed
        self.gates = HardConcrete()
        self.overflow = Overflow(self.parameters())

    def on_fit_end(self) -> None:
        """Say what of the gradients was left out."""
        self.overflow.tell()

    def masks(self, step: int, micro_batch: int) -> tuple[Float[Tensor, "mask"], Float[Tensor, "mask"]]:
        """Sampled masks of base and tuned model, both of the step's expected size."""
        scale, share = self.schedule.noise(step), self.schedule.open_share(step, self.target, self.seed)
        size, measure = self.log_alpha.numel(), self.losses[0].layout.share
        noise = logistic_noise(size, self.seed, step, micro_batch, self.device)
        other = logistic_noise(size, self.seed + _OWN_NOISE, step, micro_batch, self.device)
        moved = self.log_alpha + self.gates.sample(self.gate_alpha, other, scale) * self.value
        made = []
        for own in (self.log_alpha, moved):
            own = own + self.gates.shift_to(own.detach(), share, scale, measure)
            made.append(self.gates.sample(self.gates.held(own, scale, measure), noise, scale))
        return made[0], made[1]

    def total(self, batch: Batch, step: int, micro_batch: int = 0) -> dict[str, Float[Tensor, ""]]:
        """The loss and its parts: both models' objectives, and the expected number of open difference gates."""
        parts = []
        for loss, references, masks in zip(self.losses, self.references, self.masks(step, micro_batch), strict=True):
            parts.append(loss(masks, batch, references(batch)))
        size = self.gates.open_probability(self.gate_alpha, self.schedule.noise(step)).sum()
        rise = min(1.0, max(0.0, 3 * step / self.schedule.steps - 1))
        return {
            "loss": parts[0] + parts[1] + rise * self.penalty * size,
            "base": parts[0],
            "tuned": parts[1],
            "open": size,
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch."""
        figures = self.total(batch, self.global_step, batch_idx)
        self.log_dict({f"train/{name}": value.detach() for name, value in figures.items()}, batch_size=len(batch))
        return figures["loss"]

    def configure_optimizers(self) -> Any:
        """Adam on all three, no weight decay."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.schedule.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def found(self, batches: Iterable[Batch]) -> SparseDifference:
        """Both circuits' scores, and the difference mask: gates that are open without noise and worth their penalty.

        One after the other, smallest change first, an edge leaves the difference unless the tuned model's loss, under
        the circuit that is cut, grows by at least the penalty. Then edges that only one model needs enter it.
        """
        layout = self.losses[0].layout
        gate = self.gates.sample(self.gate_alpha, torch.zeros_like(self.gate_alpha))
        change, count = gate * self.value, max(1, round((1 - self.target) * layout.n_edges))
        pairs = [batch.to(self.device) for batch in batches]
        base, tuned = (
            _MeanLoss(loss, [(batch, references(batch)) for batch in pairs])
            for loss, references in zip(self.losses, self.references, strict=True)
        )

        def kept(moved: Float[Tensor, "mask"]) -> Float[Tensor, "mask"]:
            order = (self.log_alpha + moved).view(layout.copies, -1)
            return top_k(order, count).flatten().to(order)  # which is a mask on the CPU

        masks = kept(change)
        best = tuned(masks)
        for edge in change.abs().argsort().tolist():
            if change[edge] == 0:
                continue
            without = change.clone()
            without[edge] = 0
            other_masks = kept(without)
            other = best if torch.equal(other_masks, masks) else tuned(other_masks)
            if other - best < self.penalty:
                change, best, masks = without, other, other_masks
        needed = self._needed_by_one(base, tuned, masks, [batch for batch, _ in base.pairs])
        # From one end of the ranking to the other.
        step = float((self.log_alpha + change).max() - self.log_alpha.min()) + 1
        low, high = (needed * step).clamp(max=0), (needed * step).clamp(min=0)
        share, scores = 1 - self.target, []
        for own in (self.log_alpha - high, self.log_alpha + change + low):
            own = (own + self.gates.shift_to(own, share, 1.0, layout.share)).cpu()
            values = own.reshape(layout.copies, -1).clone()
            scores.append(self.gates.scores(layout, values, "sparse_difference", {}))
        moved = (change + low + high).cpu().reshape(layout.copies, -1)
        return SparseDifference(scores[0], scores[1], moved != 0, moved)

    def _needed_by_one(
        self, base: _MeanLoss, tuned: _MeanLoss, kept: Float[Tensor, "mask"], batches: list[Batch]
    ) -> Float[Tensor, "mask"]:
        """1 at edges that the tuned model alone misses by the penalty, -1 at those that the base alone does, else 0.

        With more than `TESTED` edges only those are left out whose gradients differ most.
        """
        apart = (base.gradient(kept) - tuned.gradient(kept)).abs()
        edges = kept.nonzero()[:, 0]
        edges = edges[apart[edges].argsort(descending=True, stable=True)[:TESTED]].cpu()
        missed = [
            _rises(HeldLoss(loss, references, batches, kept.bool()), edges) >= self.penalty
            for loss, references in zip(self.losses, self.references, strict=True)
        ]
        needed = torch.zeros_like(kept)
        needed[edges.to(kept.device)] = (missed[1].float() - missed[0].float()).to(kept.device)
        return needed


@dataclass(frozen=True)
class _MeanLoss:
    """A model's mean loss under some masks."""

    loss: MaskedLoss
    pairs: list[tuple[Batch, Reference]]

    def __call__(self, masks: Float[Tensor, "mask"]) -> float:
        values = [float(self.loss(masks, batch, reference)) * len(batch) for batch, reference in self.pairs]
        return sum(values) / sum(len(batch) for batch, _ in self.pairs)

    def gradient(self, masks: Float[Tensor, "mask"]) -> Float[Tensor, "mask"]:
        """Of the first batch's loss."""
        with torch.enable_grad():
            own = masks.clone().requires_grad_()
            (found,) = torch.autograd.grad(self.loss(own, *self.pairs[0]), own)
        return found


def _rises(held: HeldLoss, edges: Int[Tensor, "tried"]) -> Float[Tensor, "tried"]:
    """By how much the loss of a circuit rises without each of some edges."""
    graph = held.graph
    before, rises = held.value(), torch.zeros(len(edges), dtype=torch.float64)
    places = graph.dense_index[edges]
    readers, writers = places // graph.n_writers, places % graph.n_writers
    for reader in readers.unique().tolist():
        for some in (readers == reader).nonzero()[:, 0].split(VARIANTS):
            without = held.masks[reader].repeat(len(some), 1)
            without[torch.arange(len(some)), writers[some]] = 0
            rises[some] = torch.tensor(held.values(reader, without), dtype=torch.float64) - before
    return rises
