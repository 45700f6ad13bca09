"""The objective of runs that are held open: what exact patching and ACDC ask over and over."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.errors import UserError
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import References
from circuitlit.masked.resume import HeldRun
from circuitlit.objective import Objective, each_pair
from circuitlit.tasks.pair import Batch


class HeldLoss:
    """Mean objective over all pairs under masks of 0 and 1, of which one reader's vary at a time.

    Args:
        loss: the objective under masks.
        references: teacher and ablated writers.
        batches: the pairs; all of them stay in memory, about `(readers + writers) * tokens * width` numbers.
        kept: the edges of the circuit to begin with; None keeps all.

    Raises:
        UserError: the masks differ by token role, there are no pairs, or more than the memory can hold.
    """

    def __init__(
        self,
        loss: MaskedLoss,
        references: References,
        batches: Iterable[Batch],
        kept: Bool[Tensor, "edge"] | None = None,
    ) -> None:
        if loss.layout.copies > 1 or loss.layout.sites != "edges":
            raise UserError(
                "edges are cut one by one at all positions; set mask.roles=false and mask.sites=edges for this method"
            )
        batches = list(batches)
        _refuse_too_many(loss, references, batches)
        self.objective: Objective = loss.objective
        masks = None if kept is None else scatter_edges(loss.layout.graph, kept[None].cpu())[0]
        self._parts: list[tuple[HeldRun, Tensor, Batch]] = []
        for batch in batches:
            batch = batch.to(references.subject.device)
            reference = references(batch)
            same = references.same_start(batch)
            run = HeldRun(loss.model, batch.clean, reference.ablated, batch.positions, masks, same)
            self._parts.append((run, reference.teacher, batch))
        if not self._parts:
            raise UserError("no pairs to score edges on; raise method.max_batches")
        self.graph = loss.layout.graph

    @property
    def masks(self) -> Float[Tensor, "reader writer"]:
        """The masks as they are held, on the host; 0 where there is no edge."""
        return self._parts[0][0].masks

    def value(self) -> float:
        """The loss of the held masks."""
        return self._mean([run.logits() for run, _, _ in self._parts])[0]

    def values(self, reader: int, rows: Float[Tensor, "variant writer"]) -> list[float]:
        """The loss with other masks on the edges into one reader, one value a row."""
        return self._mean([run.logits(reader, rows) for run, _, _ in self._parts])

    def commit(self, reader: int, row: Float[Tensor, "writer"]) -> None:
        """Hold other masks on the edges into one reader from now on."""
        for run, _, _ in self._parts:
            run.commit(reader, row)

    def _mean(self, logits: list[Tensor]) -> list[float]:
        """Mean over the pairs of all batches, from each batch's logits of every variant."""
        total, pairs = torch.zeros(len(logits[0]), dtype=torch.float64), 0
        for of_batch, (_, teacher, batch) in zip(logits, self._parts, strict=True):
            total += self._each(of_batch, teacher, batch).double().sum(1).cpu()
            pairs += len(batch)
        return (total / pairs).tolist()

    def _each(self, logits: Float[Tensor, "variant batch answer vocab"], teacher: Tensor, batch: Batch) -> Tensor:
        """The objective of every variant and pair."""

        def of_one(variant: Tensor) -> Tensor:
            return each_pair(self.objective, variant, teacher, batch)

        if logits.is_cuda:  # many small kernels for each variant take longer than the run itself
            with suppress(RuntimeError):  # an objective that looks at values
                return torch.vmap(of_one)(logits)
        return torch.stack([of_one(variant) for variant in logits])


def _refuse_too_many(loss: MaskedLoss, references: References, batches: list[Batch]) -> None:
    """Refuse pairs whose held activations are larger than all of the device's memory."""
    graph, subject = loss.layout.graph, references.subject
    size = subject.model.config.hidden_size * subject.model.dtype.itemsize
    need = (graph.n_readers + graph.n_writers) * sum(batch.clean.numel() for batch in batches) * size
    if subject.device.type == "cuda":
        room = torch.cuda.mem_get_info(subject.device)[1]
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        pairs = sum(len(batch) for batch in batches)
        raise UserError(
            f"{pairs:,} pairs held open need {need / 2**30:,.0f} GiB, the device has {room / 2**30:,.0f}; lower "
            "method.max_batches or data.batch_size"
        )
