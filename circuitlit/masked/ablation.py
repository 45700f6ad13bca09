"""What every writer puts out when its edge is cut: the corrupted run, nothing, or a mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.model.record import record
from circuitlit.model.subject import Subject
from circuitlit.tasks.pair import Batch

Kind = Literal["interchange", "zero", "mean"]
KINDS = get_args(Kind)


@dataclass
class Ablated:
    """Outputs of all writers in the ablated run.

    Attributes:
        embed: the input writer (token embeddings; position embeddings stay, they belong to no edge).
        heads: results of all heads side by side, before the output projection.
        mlps: outputs of the MLPs.
    """

    embed: Float[Tensor, "batch pos d"]
    heads: Float[Tensor, "batch layer pos width"]
    mlps: Float[Tensor, "batch layer pos d"]

    def rows(self, index: Int[Tensor, "_"], length: int) -> Ablated:
        """Some examples, cut to a length (causality makes the cut exact)."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Ablated(**{name: part[..., :length, :][index] for name, part in parts.items()})

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))


@torch.no_grad()
def run_writers(subject: Subject, ids: Int[Tensor, "batch pos"]) -> Ablated:
    """Outputs of all writers in a stock forward."""
    with record(subject) as recording:
        subject.hidden(ids)
    return Ablated(recording.embed[0], torch.stack(recording.heads, 1), torch.stack(recording.mlps, 1))


def ablated_run(subject: Subject, batch: Batch, kind: Kind, mean: Ablated | None = None) -> Ablated:
    """What the writers of a batch put out when ablated.

    Args:
        subject: the frozen model.
        batch: the pairs.
        kind: "interchange" takes the same writer on the corrupted prompt, "zero" nothing, "mean" the given means.
        mean: of `mean_writers`; needed for "mean".
    """
    if kind == "interchange":
        return run_writers(subject, batch.corrupted)
    if kind == "mean":
        if mean is None:
            raise ValueError("mean ablation needs the writers' means: pass mean_writers(...)")
        return _spread(mean, batch)
    zeros = run_writers(subject, batch.clean[:1, :1])
    return _spread(Ablated(*(torch.zeros_like(getattr(zeros, f.name)) for f in fields(zeros))), batch)


def mean_writers(subject: Subject, batches: Iterable[Batch]) -> Ablated:
    """Mean of every writer over all real tokens of the corrupted prompts, one vector a writer, in float32."""
    sums: list[Tensor] | None = None
    count = 0
    for batch in batches:
        run = run_writers(subject, batch.corrupted)
        real = torch.arange(batch.corrupted.shape[1], device=batch.corrupted.device) < batch.lengths[:, None]
        count += int(real.sum())
        weight = real.to(torch.float32)
        parts = [
            torch.einsum("bp,bpd->d", weight, run.embed.float())[None, None],
            torch.einsum("bp,blpd->ld", weight, run.heads.float())[None, :, None],
            torch.einsum("bp,blpd->ld", weight, run.mlps.float())[None, :, None],
        ]
        sums = parts if sums is None else [a + b for a, b in zip(sums, parts, strict=True)]
    if sums is None:
        raise ValueError("mean ablation needs at least one batch")
    dtype = subject.model.dtype
    return Ablated(*((part / count).to(dtype) for part in sums))


def _spread(one: Ablated, batch: Batch) -> Ablated:
    rows, length = batch.clean.shape
    return Ablated(
        one.embed.expand(rows, length, -1),
        one.heads.expand(rows, -1, length, -1),
        one.mlps.expand(rows, -1, length, -1),
    )
