"""What a mask run compares with and falls back to: the full model's answers and the ablated writers, cached."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.masked.ablation import (
    Ablated,
    Kind,
    ablated_run,
    check_corrupted,
    run_and_record,
    spread,
    zero_writers,
)
from circuitlit.masked.captured import CapturedCall, Outputs
from circuitlit.model.logits import take_positions
from circuitlit.model.subject import Subject
from circuitlit.surroundings import matmul_precision
from circuitlit.tasks.pair import Batch

log = logging.getLogger(__name__)

LAUNCH_BOUND = 2**28  # bytes that a batch's writers put out; above it a graph saves no time and its memory counts


@dataclass
class Reference:
    """For one batch, the full model's log-probabilities and the outputs of ablated writers.

    Attributes:
        teacher: the log-probabilities.
        ablated: the outputs.
        shared: of each prompt, tokens at its start on which both runs are one; None where that is not known, or on a
            device for which one would have to wait.
        alike: tokens at the start that all prompts of the batch have in common, in both runs.
    """

    teacher: Float[Tensor, "batch answer vocab"]
    ablated: Ablated
    shared: Int[Tensor, "batch"] | None = None
    alike: int = 0

    def head(self, count: int) -> Reference:
        """Those of the first `count` rows."""
        rows = torch.arange(count, device=self.teacher.device)
        shared = None if self.shared is None else self.shared[:count]
        return Reference(
            self.teacher[:count], self.ablated.rows(rows, self.ablated.embed.shape[-2]), shared, self.alike
        )


class References:
    """Makes references, and keeps those of a small split so that each pair is run once.

    Args:
        subject: the frozen model.
        kind: how edges are ablated.
        mean: the writers' constants, for mean and optimal ablation.
        budget: bytes the cache may take on the device.
        host: bytes it may take in the host's memory, if the device has no room for it; a batch is then copied in each
            step. A split that is larger still is computed batch by batch.
        capture: True replays a CUDA graph for each batch shape on a GPU; the weights must stay where they are.
    """

    def __init__(
        self,
        subject: Subject,
        kind: Kind,
        mean: Ablated | None = None,
        budget: float = 0,
        capture: bool = False,
        host: float = 0,
    ) -> None:
        self.subject, self.mean, self.budget, self.host = subject, mean, budget, host
        self.kind: Kind = kind
        eager = subject.model.config._attn_implementation == "eager"  # whose mask no graph can make
        self._capture = capture and subject.captures and not eager
        self._calls: dict[str, CapturedCall] = {}  # a graph keeps the matmul precision that it was captured with
        self._checked = kind != "interchange"
        self._zeros: Ablated | None = None
        self._teacher: Tensor | None = None
        self._ablated: Ablated | None = None

    def emptied(self) -> References:
        """The same for another split: with room, and without what is kept."""
        return References(self.subject, self.kind, self.mean, self.budget, self._capture, self.host)

    def with_constants(self, kind: Kind, mean: Ablated | None) -> References:
        """Of the same split under an ablation by constants, with what is kept of the full model."""
        made = References(self.subject, kind, mean, self.budget, self._capture, self.host)
        made._teacher = self._teacher
        return made

    def release(self) -> None:
        """Let go of captured graphs and their memory; the next call captures anew."""
        self._calls.clear()

    @property
    def cached(self) -> bool:
        """True once `fill` has kept a split."""
        return self._teacher is not None

    @torch.no_grad()
    def teacher(self, batch: Batch) -> Float[Tensor, "batch answer vocab"]:
        """The full model's log-probabilities."""
        return self.subject.logits(batch.clean, batch.positions).float().log_softmax(-1)

    @torch.no_grad()
    def compute(self, batch: Batch) -> Reference:
        """One stock forward of clean and corrupted prompts: half the launches, and weights are gathered once.

        Raises:
            UserError: interchange ablation, and pairs without corrupted prompts.
        """
        self._check(batch)
        if self.kind != "interchange":
            return Reference(self.teacher(batch), self._constants(batch))
        return self._interchange(batch)[0]

    def _constants(self, batch: Batch) -> Ablated:
        if self.kind != "zero":
            return ablated_run(self.subject, batch, self.kind, self.mean)
        if self._zeros is None:
            self._zeros = zero_writers(self.subject, batch)
        return spread(self._zeros, batch)

    @torch.no_grad()
    def with_corrupted(self, batch: Batch, alike: int = 0) -> tuple[Reference, Float[Tensor, "batch answer vocab"]]:
        """The references and the corrupted run's logits, of the same forward; for interchange ablation.

        Args:
            batch: the pairs.
            alike: tokens at the start that all of them have in common, which are run once.
        """
        self._check(batch)
        reference, hidden = self._interchange(batch, alike)
        return reference, self.subject.unembed(take_positions(hidden, batch.positions))

    def _check(self, batch: Batch) -> None:
        if not self._checked:  # once: it waits for the device
            check_corrupted(batch)
            self._checked = True

    def _interchange(self, batch: Batch, alike: int = 0) -> tuple[Reference, Float[Tensor, "batch pos d"]]:
        """The references, and the corrupted run's final normed stream."""
        rows = len(batch)
        ablated, hidden = run_and_record(self.subject, torch.cat([batch.corrupted, batch.clean]), rows, alike)
        logits = self.subject.unembed(take_positions(hidden[rows:], batch.positions))
        return Reference(logits.float().log_softmax(-1), ablated, self._shared(batch), alike), hidden[:rows]

    def _shared(self, batch: Batch) -> Int[Tensor, "batch"] | None:
        return self.same_start(batch) if batch.clean.device.type == "cpu" else None

    def same_start(self, batch: Batch) -> Int[Tensor, "batch"] | None:
        """Tokens ahead of the first one in which corrupted prompts differ; None where writers are not interchanged."""
        return (batch.clean == batch.corrupted).cumprod(1).sum(1) if self.kind == "interchange" else None

    def fill(self, batches: Iterable[Batch], rows: int) -> bool:
        """Cache a split whose batches come in order, all padded to one length; False if it would not fit.

        Of zeros and means, which are expanded views, there is nothing to keep but the full model's part.
        """
        teacher: Tensor | None = None
        ablated: Ablated | None = None
        for batch in batches:
            batch = batch.to(self.subject.device)
            part = self.compute(batch)
            kept = vars(part.ablated) if self.kind == "interchange" else {}
            need = (part.teacher.nbytes + sum(one.nbytes for one in kept.values())) / len(batch) * rows
            at_host = need > self.budget
            if need > max(self.budget, self.host):
                log.info("references of %d pairs would take %.1f GiB; computed anew each step", rows, need / 2**30)
                return False
            if teacher is None:
                teacher = _room(part.teacher, rows, at_host)
                ablated = Ablated(*(_room(one, rows, at_host) for one in kept.values())) if kept else None
            index = batch.index.to(teacher.device)
            teacher[index] = part.teacher.to(teacher.device)
            for name, rows_of in kept.items():
                room = getattr(ablated, name)
                room[index] = rows_of.to(room.device)
        self._teacher, self._ablated = teacher, ablated
        return teacher is not None

    def __call__(self, batch: Batch) -> Reference:
        """The references of a batch of the cached split, or new ones."""
        if self._teacher is None:
            return self._anew(batch)
        answers, length = batch.positions.shape[1], batch.clean.shape[1]
        index, device = batch.index.to(self._teacher.device), batch.index.device
        if self._ablated is None:
            return Reference(self._teacher[index, :answers].to(device), self._constants(batch))
        parts = vars(self._ablated.rows(index, length)).values()
        teacher, *ablated = (part.to(device) for part in (self._teacher[index, :answers], *parts))
        return Reference(teacher, Ablated(*ablated), self._shared(batch))

    def _anew(self, batch: Batch) -> Reference:
        graph, config = self.subject.graph, self.subject.model.config
        written = batch.clean.numel() * 2 * graph.n_layers * config.hidden_size * self.subject.model.dtype.itemsize
        if not (self._capture and self.kind == "interchange" and written <= LAUNCH_BOUND):
            return self.compute(batch)
        call = self._calls.setdefault(matmul_precision(), CapturedCall(self._tensors))
        teacher, *ablated = call(*vars(batch).values())
        return Reference(teacher, Ablated(*ablated))

    def _tensors(self, *batch: Tensor) -> Outputs:
        made = self.compute(Batch(*batch))
        return made.teacher, *vars(made.ablated).values()


def _room(like: Tensor, rows: int, at_host: bool) -> Tensor:
    """Where a split's references are kept, zero where a pair's prompt ends: on the device of `like`, or at the host."""
    return torch.zeros(rows, *like.shape[1:], dtype=like.dtype, device="cpu" if at_host else like.device)
