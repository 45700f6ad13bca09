"""Runs full model, ablated run and circuits on pairs, example by example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import MaskedModel, Reference, References
from circuitlit.objective import Outcome
from circuitlit.tasks import EncodedPairs
from circuitlit.tasks.pair import Batch


@dataclass(frozen=True)
class TestBed:
    """Held-out pairs with all that circuits are measured against, computed once.

    Attributes:
        model: the masked forward.
        batches: the pairs, on the model's device.
        references: teacher and ablated writers of each batch.
        full: outcome of the full model (KL 0 by definition).
        corrupted: outcome of the run in which every edge is ablated.
    """

    model: MaskedModel
    batches: list[Batch]
    references: list[Reference]
    full: Outcome
    corrupted: Outcome

    __test__ = False  # not a test class

    @classmethod
    @torch.no_grad()
    def build(cls, model: MaskedModel, references: References, batches: Iterable[Batch]) -> TestBed:
        """Run the full model and the ablated one.

        Raises:
            UserError: what the full model says is not finite, so that nothing can be compared with it.
        """
        placed = [batch.to(references.subject.device) for batch in batches]
        made, corrupted = [], []
        for batch in placed:
            if references.kind == "interchange":
                reference, logits = references.with_corrupted(batch)
                corrupted.append(Outcome.of(logits, reference.teacher, batch))
            else:
                reference = references.compute(batch)
            made.append(reference)
        full = Outcome.join([Outcome.of(r.teacher, r.teacher, b) for b, r in zip(placed, made, strict=True)])
        if not bool(full.kl.isfinite().all()):
            raise UserError(
                f"the model's logits are not finite on {int((~full.kl.isfinite()).sum())} of {len(full.kl)} pairs; "
                "load it in a wider dtype (model.dtype=float32), or see whether its weights are whole"
            )
        if not corrupted:
            nothing = torch.zeros(1, model.graph.n_edges, dtype=torch.bool)
            corrupted = [cls(model, placed, made, full, full).run(nothing)]
        return cls(model, placed, made, full, Outcome.join(corrupted))

    @classmethod
    def of(cls, bench: Workbench, pairs: EncodedPairs, order: Sequence[int] | None = None) -> TestBed:
        """Some pairs of a workbench's task, in some order; None takes all as they come."""
        batches = pairs.batches(bench.data.eval_batch_size, order=order)
        return cls.build(bench.model, bench.fresh_references(), batches)

    @torch.no_grad()
    def run(
        self, kept: Bool[Tensor, "copies edge"] | Float[Tensor, "copies edge"], pairs: int | None = None
    ) -> Outcome:
        """Outcome of a set of edges, or of masks between 0 and 1, on all pairs or on the first few alone."""
        runs = self.logits(kept, pairs)
        return Outcome.join([Outcome.of(logits, teacher, batch) for logits, teacher, batch in runs])

    @torch.no_grad()
    def logits(
        self, kept: Bool[Tensor, "copies edge"] | Float[Tensor, "copies edge"], pairs: int | None = None
    ) -> Iterator[tuple[Float[Tensor, "batch answer vocab"], Float[Tensor, "batch answer vocab"], Batch]]:
        """As `run`, of each batch its logits, the full model's log-probabilities, and the pairs: what metrics take."""
        seen = 0
        for batch, reference in zip(self.batches, self.references, strict=True):
            if pairs is not None and seen >= pairs:
                break
            if pairs is not None and pairs - seen < len(batch):
                batch, reference = batch.head(pairs - seen), reference.head(pairs - seen)
            yield masked_logits(self.model, kept, batch, reference), reference.teacher, batch
            seen += len(batch)


@torch.no_grad()
def masked_logits(
    model: MaskedModel,
    kept: Bool[Tensor, "copies edge"] | Float[Tensor, "copies edge"],
    batch: Batch,
    reference: Reference,
) -> Float[Tensor, "batch answer vocab"]:
    """Logits of a set of edges, or of masks between 0 and 1, on one batch."""
    masks = scatter_edges(model.graph, kept.to(model.subject.device, torch.float32))
    return model(
        masks,
        batch.clean,
        reference.ablated,
        batch.positions,
        batch.roles,
        shared=reference.shared,
        alike=reference.alike,
    )
