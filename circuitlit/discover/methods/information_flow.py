"""Information-flow routes: how much of what a reader sees comes from each writer, in the clean run alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.discover.reader_gradients import mean_scores, real_tokens, writer_chunks
from circuitlit.graph import EdgeScores
from circuitlit.masked import Ablated, Reference, References
from circuitlit.model import record, record_reads
from circuitlit.tasks.pair import Batch


@declares(Traits(mean_of_pairs=True))
def information_flow(loss: MaskedLoss, references: References, batches: Iterable[Batch]) -> EdgeScores:
    """Share of a reader's input that each writer brings it nearer to, by L1 distance; knows no objective.

    At one token a writer's proximity is `max(0, |x|_1 - |x - z|_1)` with `x` the reader's input ahead of its norm and
    `z` the writer's output; the proximities of all writers that the reader sees are scaled to add up to 1. Readers of
    one norm (q, k and v of a layer) share their scores; positions and biases, which belong to no edge, take no part.

    Args:
        loss: the model and the layout of the scores; its objective is not looked at.
        references: for the model; the ablation is not looked at.
        batches: training pairs, each seen once; only the clean prompts are run.

    Returns:
        Shares in [0, 1], mean over an example's real tokens and then over examples; those into one reader add up to 1.

    Source: Ferrando and Voita, "Information Flow Routes" (arXiv 2403.00824) section 2; there a threshold follows the
    routes back from one token, here every edge keeps its mean.
    """
    graph, layout, subject = loss.layout.graph, loss.layout, loss.model.subject

    @torch.no_grad()
    def of_batch(batch: Batch, reference: Reference) -> Float[Tensor, "copies edge"]:
        with record(subject) as run, record_reads(subject) as reads:
            subject.hidden(batch.clean)
        outputs = Ablated(run.embed[0], torch.stack(run.heads, 1), torch.stack(run.mlps, 1))
        tokens = real_tokens(batch)
        seen = [part for pair in zip(reads.attention, reads.mlp, strict=True) for part in pair] + reads.final
        dtype = torch.promote_types(outputs.embed.dtype, torch.float32)
        streams = [part.flatten(0, 1)[tokens].to(dtype) for part in seen]
        shares = _shares(loss, outputs, streams, tokens)
        weight = (1 / batch.lengths.to(shares)).repeat_interleave(batch.lengths)
        roles = batch.roles.flatten()[tokens]
        copies = [weight * (roles == copy) if layout.copies > 1 else weight for copy in range(layout.copies)]
        per_reader = torch.stack([shares @ w for w in copies])[:, _stream_of_reader(loss)]
        return per_reader.flatten(1)[:, graph.placed("dense_index", shares.device)]

    found = mean_scores(loss, references, batches, of_batch, "information_flow")
    return replace(found, kind="share", unit="share of the reader's input", ranks_by_magnitude=False)


def _shares(
    loss: MaskedLoss, outputs: Ablated, streams: list[Float[Tensor, "token d"]], tokens: Tensor
) -> Float[Tensor, "stream writer token"]:
    """Every writer's share in every stream that a norm reads; 0 where it is not seen."""
    graph = loss.layout.graph
    first_readers = [_first(_stream_of_reader(loss), stream) for stream in range(len(streams))]
    visible = [int(graph.visible[reader]) for reader in first_readers]
    proximity = streams[0].new_zeros(len(streams), graph.n_writers, len(tokens))
    for columns, _, written in writer_chunks(loss, outputs, tokens):
        for stream, (x, seen) in enumerate(zip(streams, visible, strict=True)):
            stop = min(columns.stop, seen)
            if stop <= columns.start:
                continue
            z = written[: stop - columns.start].to(x)
            near = x.abs().sum(-1) - (x - z).abs().sum(-1)
            proximity[stream, columns.start : stop] = near.clamp(min=0)
    total = proximity.sum(1, keepdim=True)
    return torch.where(total > 0, proximity / total, 0)


def _stream_of_reader(loss: MaskedLoss) -> Tensor:
    """For each reader the place of its stream: attention and MLP of each layer in turn, then the logits."""
    graph = loss.layout.graph
    streams = []
    for layer in range(graph.n_layers):
        streams += [2 * layer] * graph.attention_readers + [2 * layer + 1] * graph.mlp_readers
    return torch.tensor([*streams, 2 * graph.n_layers])


def _first(values: Tensor, wanted: int) -> int:
    return int((values == wanted).nonzero()[0, 0])
