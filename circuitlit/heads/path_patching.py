"""Path patching: what a metric loses when some readers see other outputs of some writers, over direct paths only.

Every reader sees the sum of all writers, so a path patch is a masked run: the "ablated" writers are those of the clean
run, except for the senders, which put out what they do on another prompt; the receivers read ablated writers only, all
other readers see the model as it runs. So receivers see clean outputs of everything but the senders, also of each
other, and everything after the receivers is computed anew. Blocks ahead of the first receiver are known to be clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.graph import Graph
from circuitlit.graph.layout import scatter_edges
from circuitlit.heads.attention import Heads, heads_replaced, run_streams
from circuitlit.masked import Ablated, MaskedModel, run_writers
from circuitlit.masked.ledger import Ledger
from circuitlit.model import Subject, take_positions
from circuitlit.objective import task_metric
from circuitlit.tasks.pair import Batch


class TailModel(MaskedModel):
    """A masked model whose first blocks need no computing, because their outputs are known."""

    def tail(
        self,
        masks: Float[Tensor, "one reader writer"],
        first: int,
        stream: Float[Tensor, "batch pos d"],
        deltas: dict[int, Float[Tensor, "batch pos d"]],
        ablated: Ablated,
        positions: Int[Tensor, "batch answer"],
    ) -> Float[Tensor, "batch answer vocab"]:
        """Logits when the blocks before `first` are given.

        Args:
            masks: as for the whole model.
            first: first block to compute; may be the number of blocks.
            stream: residual stream of the ablated run ahead of it.
            deltas: of the earlier writers, what they put out beyond the ablated run; left out where that is nothing.
            ablated: outputs of all writers where their edges are cut.
            positions: where logits are wanted.
        """
        batch, length = stream.shape[:2]
        flat = (positions + length * torch.arange(batch, device=stream.device)[:, None]).flatten()
        stream = stream.flatten(0, 1)
        rotary = self.rotary(stream[None], length)
        ledger = Ledger(self.graph.n_writers, stream, self.panel * self.graph.readers_per_layer, masks)
        ledger.deltas[: self.graph.writers_before(first)].zero_()
        token = ledger.start()
        for writer, delta in deltas.items():
            token = ledger.write(token, writer, delta.reshape(1, *stream.shape))
        for start in range(first, len(self.blocks), self.panel):
            token, stream = self._run_panel(ledger, token, stream, ablated, start, rotary, None)
        final = ledger.read_at(token, stream[flat], flat)
        return self.subject.unembed(self.final_norm(final)).unflatten(0, positions.shape)


@dataclass(frozen=True)
class PatchBed:
    """Pairs with the clean run and the one that senders are taken from, computed once.

    Attributes:
        model: the masked forward.
        heads: the subject's heads.
        batches: the pairs, on the model's device.
        clean, other: outputs of all writers on the clean prompts and on those that senders' outputs come from.
        streams: residual streams of the clean run.
        metric: the task's metric on the clean prompts (logit difference, or probability difference).
        scale: metric on the clean minus that on the corrupted prompts.
    """

    model: TailModel
    heads: Heads
    batches: list[Batch]
    clean: list[Ablated]
    other: list[Ablated]
    streams: list[list[Tensor]]
    metric: Float[Tensor, "pair"]
    scale: Float[Tensor, "pair"]

    @classmethod
    @torch.no_grad()
    def build(cls, subject: Subject, batches: Iterable[Batch]) -> PatchBed:
        """Run the clean and the corrupted prompts; senders come from the corrupted ones."""
        placed = [batch.to(subject.device) for batch in batches]
        clean, corrupted = ([subject.logits(getattr(b, side), b.positions) for b in placed] for side in SIDES)
        metric = _joined(clean, placed)
        return cls(
            TailModel(subject),
            Heads(subject),
            placed,
            [run_writers(subject, b.clean) for b in placed],
            [run_writers(subject, b.corrupted) for b in placed],
            [run_streams(subject, b.clean) for b in placed],
            metric,
            metric - _joined(corrupted, placed),
        )

    def with_other(self, prompts: Sequence[Int[Tensor, "batch pos"]]) -> PatchBed:
        """The same pairs with senders' outputs from other prompts, one batch of ids for each batch."""
        return replace(self, other=[run_writers(self.subject, ids.to(self.subject.device)) for ids in prompts])

    @property
    def subject(self) -> Subject:
        """The frozen model."""
        return self.model.subject

    @property
    def graph(self) -> Graph:
        """Its topology."""
        return self.model.graph


SIDES = ("clean", "corrupted")


def _joined(logits: Iterable[Tensor], batches: list[Batch]) -> Float[Tensor, "pair"]:
    parts = [task_metric(each, batch) for each, batch in zip(logits, batches, strict=True)]
    return torch.cat(parts).cpu()


def path_patch(
    bed: PatchBed, senders: Sequence[int], receivers: Sequence[int], through_mlps: bool = False
) -> Float[Tensor, "pair"]:
    """The task's metric of every pair under `path_patch_logits`."""
    return _joined(path_patch_logits(bed, senders, receivers, through_mlps), bed.batches)


@torch.no_grad()
def path_patch_logits(
    bed: PatchBed, senders: Sequence[int], receivers: Sequence[int], through_mlps: bool = False
) -> list[Float[Tensor, "batch answer vocab"]]:
    """Logits of every batch when `receivers` see the senders' outputs from the other prompts.

    Args:
        bed: the pairs.
        senders: writers (the input, heads, MLPs) by their place in the graph.
        receivers: readers (q, k or v of heads, MLPs, the logits) by their place in the graph.
        through_mlps: False patches the edges between senders and receivers alone. True also lets the MLPs between
            them answer to the senders, with all other heads frozen, and then to each other.

    Source: Wang et al. (arXiv 2211.00593) section 3.1; `through_mlps=True` is theirs. Tested against hooks.
    """
    graph = bed.graph
    masks = torch.ones(1, graph.n_edges, device=bed.subject.device)
    masks[:, torch.isin(graph.placed("reader_of", masks.device), torch.tensor(receivers, device=masks.device))] = 0
    dense = scatter_edges(graph, masks).to(bed.subject.model.dtype)
    first = min(receiver // graph.readers_per_layer for receiver in receivers)  # the logits: the number of blocks
    logits = []
    for number, batch in enumerate(bed.batches):
        ablated = patched_writers(bed, number, senders, through_mlps)
        deltas = changes(bed, number, ablated, senders, first, through_mlps)
        stream = bed.streams[number][first] - _total(deltas, bed.streams[number][first])
        if first == graph.n_layers:
            normed = bed.model.final_norm(take_positions(stream, batch.positions))
            logits.append(bed.subject.unembed(normed))
        else:
            logits.append(bed.model.tail(dense, first, stream, deltas, ablated, batch.positions))
    return logits


def patched_writers(bed: PatchBed, number: int, senders: Sequence[int], through_mlps: bool) -> Ablated:
    """Writers as the receivers see them: clean, but for the senders and, where asked for, the MLPs after them."""
    clean, other, graph = bed.clean[number], bed.other[number], bed.graph
    heads, mlps = [], []
    embed = other.embed if 0 in senders else clean.embed
    for layer in range(graph.n_layers):
        before = graph.writers_before(layer)
        own = clean.heads[:, layer].unflatten(-1, (graph.n_heads, -1))
        chosen = [writer - before for writer in senders if before <= writer < before + graph.n_heads]
        if chosen:
            own = own.clone()
            own[..., chosen, :] = other.heads[:, layer].unflatten(-1, (graph.n_heads, -1))[..., chosen, :]
        heads.append(own.flatten(-2))
        mlps.append((other if before + graph.n_heads in senders else clean).mlps[:, layer])
    made = Ablated(embed, torch.stack(heads, 1), torch.stack(mlps, 1))
    return _mlps_recomputed(bed, number, made, senders) if through_mlps else made


def _mlps_recomputed(bed: PatchBed, number: int, frozen: Ablated, senders: Sequence[int]) -> Ablated:
    """The same with all heads frozen and the MLPs, but for senders, computed by the stock forward."""
    graph, subject = bed.graph, bed.subject
    if any(writer == 0 or (writer - 1) % graph.writers_per_layer == graph.n_heads for writer in senders):
        raise ValueError("only heads can send through MLPs")
    split = frozen.heads.unflatten(-1, (graph.n_heads, -1))
    results = {(i, h): split[:, i, :, h] for i in range(graph.n_layers) for h in range(graph.n_heads)}
    with heads_replaced(subject, results):
        run = run_writers(subject, bed.batches[number].clean)
    return Ablated(frozen.embed, frozen.heads, run.mlps)


def changes(
    bed: PatchBed, number: int, ablated: Ablated, senders: Sequence[int], first: int, through_mlps: bool = False
) -> dict[int, Float[Tensor, "batch pos d"]]:
    """What writers before block `first` put out in the clean run beyond `ablated`, where the two may differ."""
    graph, clean = bed.graph, bed.clean[number]
    writers = {writer for writer in senders if writer < graph.writers_before(first)}
    if through_mlps:
        writers |= {graph.writers_before(layer) + graph.n_heads for layer in range(first)}
    deltas = {}
    for writer in sorted(writers):
        layer, place = divmod(writer - 1, graph.writers_per_layer)
        if writer == 0:
            deltas[writer] = clean.embed - ablated.embed
        elif place == graph.n_heads:
            deltas[writer] = clean.mlps[:, layer] - ablated.mlps[:, layer]
        else:
            difference = (clean.heads[:, layer] - ablated.heads[:, layer]).unflatten(-1, (graph.n_heads, -1))
            deltas[writer] = difference[..., place, :] @ bed.heads.parts[layer].out[place]
    return deltas


def _total(deltas: dict[int, Tensor], like: Tensor) -> Tensor:
    return torch.stack([*deltas.values()]).sum(0) if deltas else torch.zeros_like(like)
