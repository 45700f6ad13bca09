"""Path patching: what a metric loses when some readers see other outputs of some writers, over direct paths only.

Every reader sees the sum of all writers. The receivers see the clean run's writers, except for the senders, which put
out what they do on another prompt; all other readers see the model as it runs. So receivers see clean outputs of
everything but the senders, also of each other, and everything after the receivers is computed anew. Blocks ahead of the
first receiver are known to be clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.graph import Graph
from circuitlit.heads.attention import Heads, heads_replaced, run_streams
from circuitlit.heads.tail import Seen, run_tail
from circuitlit.masked import Ablated, run_writers
from circuitlit.model import Subject, take_positions
from circuitlit.objective import task_metric
from circuitlit.tasks.pair import Batch

Deltas = dict[int, Float[Tensor, "batch pos d"]]  # by writer


@dataclass(frozen=True)
class PatchBed:
    """Pairs with the clean run and the one that senders are taken from, computed once.

    Attributes:
        heads: the subject's heads.
        batches: the pairs, on the model's device.
        clean, other: outputs of all writers on the clean prompts and on those that senders' outputs come from.
        streams: residual streams of the clean run.
        metric: the task's metric on the clean prompts (logit difference, or probability difference).
        scale: metric on the clean minus that on the corrupted prompts.
    """

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
    def groups(self) -> Int[Tensor, "pair"]:
        """Which pairs share a sentence."""
        return torch.cat([batch.group for batch in self.batches]).cpu()

    @property
    def subject(self) -> Subject:
        """The frozen model."""
        return self.heads.subject

    @property
    def graph(self) -> Graph:
        """Its topology."""
        return self.heads.graph


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
    first = min(receiver // bed.graph.readers_per_layer for receiver in receivers)  # the logits: the number of blocks
    logits = []
    for number, batch in enumerate(bed.batches):
        deltas = changes(bed, number, senders, through_mlps)
        if bed.graph.n_readers - 1 in receivers:
            stream = seen_by_layer(bed, number, deltas, bed.graph.n_layers)
        else:
            seen = _seen(bed, number, deltas, receivers)
            stream = run_tail(bed.heads, first, bed.streams[number][first], seen)
        logits.append(bed.subject.read_out(take_positions(stream, batch.positions)))
    return logits


def _seen(bed: PatchBed, number: int, deltas: Deltas, receivers: Sequence[int]) -> dict[int, Seen]:
    """What the receivers of every layer see; the logits do not count."""
    graph = bed.graph
    starts = {"q": 0, "k": graph.n_heads, "v": graph.n_heads + graph.n_kv_heads}
    by_layer: dict[int, list[int]] = {}
    for receiver in receivers:
        layer, place = divmod(receiver, graph.readers_per_layer)
        by_layer.setdefault(layer, []).append(place)
    seen = {}
    for layer, places in by_layer.items():
        ends = [*list(starts.values())[1:], graph.attention_readers]
        kinds = {
            kind: [place - start for place in places if start <= place < end]
            for (kind, start), end in zip(starts.items(), ends, strict=True)
        }
        kinds = {kind: own for kind, own in kinds.items() if own}
        mlp = _seen_by_mlp(bed, number, deltas, layer) if graph.attention_readers in places else None
        seen[layer] = Seen(kinds, seen_by_layer(bed, number, deltas, layer) if kinds else None, mlp)
    return seen


def seen_by_layer(bed: PatchBed, number: int, deltas: Deltas, layer: int) -> Float[Tensor, "batch pos d"]:
    """The stream that receivers of a layer's attention see; of the number of layers: what the logits see."""
    return _without(bed.streams[number][layer], deltas, bed.graph.writers_before(layer))


def _seen_by_mlp(bed: PatchBed, number: int, deltas: Deltas, layer: int) -> Float[Tensor, "batch pos d"]:
    graph, stream = bed.graph, bed.streams[number][layer]
    if graph.parallel:
        return seen_by_layer(bed, number, deltas, layer)
    parts = bed.heads.parts[layer]
    after = stream + bed.clean[number].heads[:, layer] @ parts.out.flatten(0, 1)
    if parts.out_bias is not None:
        after = after + parts.out_bias
    return _without(after, deltas, graph.writers_before(layer) + graph.n_heads)


def _without(stream: Tensor, deltas: Deltas, before: int) -> Float[Tensor, "batch pos d"]:
    for writer, delta in deltas.items():
        if writer < before:
            stream = stream - delta
    return stream


def changes(bed: PatchBed, number: int, senders: Sequence[int], through_mlps: bool = False) -> Deltas:
    """What writers put out in the clean run beyond what receivers get from them, where the two may differ."""
    graph, clean, other = bed.graph, bed.clean[number], bed.other[number]
    deltas: Deltas = {}
    for writer in senders:
        place = graph.place(writer)
        if place is None:
            deltas[writer] = clean.embed - other.embed
            continue
        layer, head = place
        if head is None:
            deltas[writer] = clean.mlps[:, layer] - other.mlps[:, layer]
        else:
            own, theirs = (w.heads[:, layer].unflatten(-1, (graph.n_heads, -1))[..., head, :] for w in (clean, other))
            deltas[writer] = (own - theirs) @ bed.heads.parts[layer].out[head]
    if through_mlps:
        mlps = _mlps_recomputed(bed, number, senders)
        for layer in range(graph.n_layers):
            deltas[graph.writers_before(layer) + graph.n_heads] = clean.mlps[:, layer] - mlps[:, layer]
    return deltas


def _mlps_recomputed(bed: PatchBed, number: int, senders: Sequence[int]) -> Float[Tensor, "batch layer pos d"]:
    """MLPs of the stock forward with all heads frozen: the senders to the other prompts, the rest to the clean ones."""
    graph, subject = bed.graph, bed.subject
    chosen = {graph.place(writer) for writer in senders}
    if any(place is None or place[1] is None for place in chosen):
        raise ValueError("only heads can send through MLPs")
    clean, other = (w.heads.unflatten(-1, (graph.n_heads, -1)) for w in (bed.clean[number], bed.other[number]))
    every = [(layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)]
    results = {head: (other if head in chosen else clean)[:, head[0], :, head[1]] for head in every}
    with heads_replaced(subject, results):
        return run_writers(subject, bed.batches[number].clean).mlps
