"""What every writer puts out when its edge is cut: the corrupted run, nothing, or a mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from circuitlit.errors import UserError
from circuitlit.model.record import record
from circuitlit.model.subject import Subject
from circuitlit.tasks.pair import Batch

Kind = Literal["interchange", "zero", "mean", "optimal"]
KINDS = get_args(Kind)


@dataclass
class Ablated:
    """Outputs of all writers in the ablated run.

    Attributes:
        embed: the input writer (token embeddings; position embeddings stay, they belong to no edge).
        heads: results of all heads side by side, before the output projection.
        mlps: outputs of the MLPs.
        positions: position embeddings where they are a writer; otherwise of size 0 in `extra`.
    """

    embed: Float[Tensor, "batch pos d"]
    heads: Float[Tensor, "batch layer pos width"]
    mlps: Float[Tensor, "batch layer pos d"]
    positions: Float[Tensor, "batch extra pos d"] = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.positions is None:
            self.positions = self.embed[:, None][:, :0]

    def rows(self, index: Int[Tensor, "_"], length: int) -> Ablated:
        """Some examples, cut to a length (causality makes the cut exact)."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Ablated(**{name: part[..., :length, :][index] for name, part in parts.items()})


def run_writers(subject: Subject, ids: Int[Tensor, "batch pos"]) -> Ablated:
    """Outputs of all writers in a stock forward."""
    return run_and_record(subject, ids, len(ids))[0]


@torch.no_grad()
def run_and_record(
    subject: Subject, ids: Int[Tensor, "batch pos"], rows: int, alike: int = 0
) -> tuple[Ablated, Float[Tensor, "batch pos d"]]:
    """A stock forward: outputs of all writers in the first `rows` examples, and the final normed stream of all.

    Args:
        subject: the frozen model.
        ids: the prompts.
        rows: see above.
        alike: tokens that the first `rows` examples begin with, and that all others do; both beginnings are run once.
    """
    if alike and subject.graph.inputs == 1:
        return _continued(subject, ids, rows, alike)
    with record(subject) as recording:
        hidden = subject.hidden(ids)
    extra = subject.graph.inputs - 1
    heads, mlps = ([part[:rows] for part in parts] for parts in (recording.heads, recording.mlps))
    made = Ablated(recording.embed[0][:rows], torch.stack(heads, 1), torch.stack(mlps, 1))
    if extra:
        made.positions = subject.positions(ids.shape[1]).expand(rows, extra, -1, -1)
    return made, hidden


def _continued(
    subject: Subject, ids: Int[Tensor, "batch pos"], rows: int, alike: int
) -> tuple[Ablated, Float[Tensor, "batch pos d"]]:
    """As `run_and_record`: two beginnings of a row each, then the examples' own tokens behind what is kept of them."""
    cache = DynamicCache(config=subject.model.config)
    with record(subject) as first:
        begun = subject.hidden(ids[[0, -1], :alike], cache)
    counts = torch.tensor([rows, len(ids) - rows], device=ids.device)
    cache.batch_select_indices(torch.arange(2, device=ids.device).repeat_interleave(counts))
    with record(subject) as rest:
        ended = subject.hidden(ids[:, alike:], cache)

    def whole(start: Float[Tensor, "two pos d"], end: Float[Tensor, "batch pos d"]) -> Float[Tensor, "rows pos d"]:
        return torch.cat([start[:1].expand(rows, -1, -1), end[:rows]], 1)

    heads, mlps = (
        torch.stack([whole(*both) for both in zip(*parts, strict=True)], 1)
        for parts in ((first.heads, rest.heads), (first.mlps, rest.mlps))
    )
    hidden = torch.cat([begun.repeat_interleave(counts, 0), ended], 1)
    return Ablated(whole(first.embed[0], rest.embed[0]), heads, mlps), hidden


def ablated_run(subject: Subject, batch: Batch, kind: Kind, constants: Ablated | None = None) -> Ablated:
    """What the writers of a batch put out when ablated.

    Args:
        subject: the frozen model.
        batch: the pairs.
        kind: "interchange" takes the same writer on the corrupted prompt, "zero" nothing, "mean" and "optimal" the
            given constants.
        constants: one vector a writer (and a position, where there are several): of `mean_writers` or
            `optimal_writers`.
    """
    if kind == "interchange":
        check_corrupted(batch)
        return run_writers(subject, batch.corrupted)
    if kind != "zero":
        if constants is None:
            raise ValueError(f"{kind} ablation needs the writers' constants, as mean_writers makes them")
        return spread(constants, batch)
    return spread(zero_writers(subject, batch), batch)


def zero_writers(subject: Subject, batch: Batch) -> Ablated:
    """Constants of zero, of the shapes that writers have on one token; it takes a forward to see these."""
    shapes = run_writers(subject, batch.clean[:1, :1])
    return Ablated(*(torch.zeros_like(getattr(shapes, f.name)) for f in fields(shapes)))


def check_corrupted(batch: Batch) -> None:
    """Refuse pairs without corrupted prompts.

    Raises:
        UserError: there are such pairs.
    """
    if not batch.has_corrupted:
        raise UserError(
            "interchange ablation takes what corrupted prompts make writers put out, and these pairs have none; take "
            "mean, zero or optimal ablation, or give every pair a corrupted prompt"
        )


def mean_writers(subject: Subject, batches: Iterable[Batch], positional: bool = False) -> Ablated:
    """Mean of every writer over the real tokens of the corrupted prompts, or else the clean ones, summed in float32.

    Args:
        subject: the frozen model.
        batches: pairs, each seen once; with `positional` all padded to one length.
        positional: True gives every position its own means, for tasks whose prompts are aligned; a position that no
            prompt reaches has the mean over all positions.
    """
    sums: list[Tensor] | None = None
    count = torch.zeros(())
    for batch in batches:
        run = run_writers(subject, batch.corrupted)
        real = torch.arange(batch.corrupted.shape[1], device=batch.corrupted.device) < batch.lengths[:, None]
        weight = real.to(torch.float32)
        parts = [
            torch.einsum("bp,bpd->pd", weight, run.embed.float())[None],
            torch.einsum("bp,blpd->lpd", weight, run.heads.float())[None],
            torch.einsum("bp,blpd->lpd", weight, run.mlps.float())[None],
            torch.einsum("bp,bepd->epd", weight, run.positions.float())[None],
        ]
        if not positional:
            parts = [part.sum(-2, keepdim=True) for part in parts]
        sums = parts if sums is None else [a + b for a, b in zip(sums, parts, strict=True)]
        count = count.to(weight) + (weight.sum(0) if positional else weight.sum())
    if sums is None:
        raise ValueError("mean ablation needs at least one batch")
    dtype = subject.model.dtype
    return Ablated(*(_mean(part, count).to(dtype) for part in sums))


def _mean(total: Float[Tensor, "*rows pos d"], count: Tensor) -> Float[Tensor, "*rows pos d"]:
    if count.ndim == 0:
        return total / count
    overall = total.sum(-2, keepdim=True) / count.sum()
    return torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), overall)


def spread(constants: Ablated, batch: Batch) -> Ablated:
    """Constants as a batch's ablated run: one vector at all positions, or each position's own.

    Raises:
        UserError: a prompt is longer than those that the positions' constants were made of.
    """
    rows, length = batch.clean.shape
    known = constants.embed.shape[1]
    if 1 < known < length:
        raise UserError(
            f"a prompt has {length} tokens, and the mean of each position was taken from prompts of at most {known}; "
            "take one mean for all positions, or give training pairs as long"
        )
    if known > 1:
        constants = Ablated(*(part[..., :length, :] for part in vars(constants).values()))
    return Ablated(
        constants.embed.expand(rows, length, -1),
        constants.heads.expand(rows, -1, length, -1),
        constants.mlps.expand(rows, -1, length, -1),
        constants.positions.expand(rows, -1, length, -1),
    )
