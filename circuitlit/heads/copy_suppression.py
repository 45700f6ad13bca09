"""Copy-suppression scores (CSPA): how much of a head is "lower what was about to be said and stands in the context"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitlit.heads.attention import Heads, run_streams
from circuitlit.heads.roles import Head
from circuitlit.heads.tail import run_tail
from circuitlit.heads.watch import Watch, unwatched
from circuitlit.model import Subject
from circuitlit.model.linear import affine
from circuitlit.model.logits import final_norm, unembedder

NOTHING = 1e-9  # nats: a head whose mean-ablation changes less has no copy suppression to speak of


@torch.no_grad()
def copy_suppression_scores(
    heads: Heads,
    ids: Int[Tensor, "passage pos"],
    chosen: Iterable[Head],
    share: float = 0.05,
    rows: int = 8,
    watch: Watch = unwatched,
) -> Float[Tensor, "layer head"]:
    """Copy-suppression-preserving ablation of single heads: 1 - KL(full || ablated) / KL(full || mean-ablated).

    The ablated head writes its mean output `m` (over all positions), and from each source token that it keeps the
    attention times that part of `OV x - m` which points against the source token's own unembedding. It keeps those
    sources whose token the residual stream ahead of the head predicts most: the top `share` of the positions that the
    destination sees, at least one. 1 means that nothing but copy suppression mattered, 0 that copy suppression is no
    better than the mean or that the head does nothing; values below 0 exist. Keeping all sources and all directions
    would give back the head.

    Args:
        heads: the subject's.
        ids: passages of natural text, of one length.
        chosen: `(layer, head)` to score, two forwards each; all others become NaN.
        share: of source positions kept.
        rows: passages run at once.
        watch: sees the passages go by, `rows` at a time.

    Source: McDougall et al. (arXiv 2310.04625) section 3.3; without their semantically similar tokens.
    """
    graph, chosen = heads.graph, sorted(chosen)
    parts = ids.split(rows)
    means = {head: torch.zeros((), device=ids.device) for head in chosen}
    for part in parts:
        for layer, members, stream, pattern in _layers(heads, part, chosen):
            normed = heads.parts[layer].attn_norm(stream)
            for head in members:
                written = pattern[:, head] @ heads.written(layer, normed, head)
                means[layer, head] = means[layer, head] + written.flatten(0, 1).sum(0) / ids.numel()
    losses = {head: torch.zeros(2, dtype=torch.float64) for head in chosen}
    for part in watch(parts, "copy suppression"):
        full = _log_probabilities(heads, run_streams(heads.subject, part)[-1])
        directions = unembedding_directions(heads.subject, part)
        for layer, members, stream, pattern in _layers(heads, part, chosen):
            kept = predicted_sources(heads.subject, stream, part, share)
            normed = heads.parts[layer].attn_norm(stream)
            for head in members:
                own, mean = heads.written(layer, normed, head), means[layer, head]
                suppressing = mean + (pattern[:, head] * kept) @ suppressed_part(own - mean, directions)
                written = pattern[:, head] @ own
                for place, changed in enumerate((suppressing, mean)):
                    ablated = _log_probabilities(heads, run_tail(heads, layer, stream, shift=changed - written))
                    losses[layer, head][place] += (full.exp() * (full - ablated)).sum().cpu() / ids.numel()
    scores = torch.full((graph.n_layers, graph.n_heads), torch.nan)
    for head, (suppressed, averaged) in losses.items():
        scores[head] = 1 - suppressed / averaged if averaged > NOTHING else 0.0
    return scores


def _layers(heads: Heads, ids: Int[Tensor, "passage pos"], chosen: list[Head]) -> Iterator[tuple]:
    """Every layer with chosen heads: its number, these heads, the stream ahead of it and all heads' patterns."""
    streams = run_streams(heads.subject, ids)
    for layer in sorted({layer for layer, _ in chosen}):
        members = [head for its, head in chosen if its == layer]
        yield layer, members, streams[layer], heads.pattern(layer, streams[layer])


def suppressed_part(
    outputs: Float[Tensor, "batch key d"], directions: Float[Tensor, "batch key d"]
) -> Float[Tensor, "batch key d"]:
    """Projection of each output on its direction where the two point apart, else nothing."""
    length = (outputs * directions).sum(-1, keepdim=True) / directions.square().sum(-1, keepdim=True)
    return length.clamp(max=0) * directions


def unembedding_directions(subject: Subject, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d"]:
    """For every token the direction of the residual stream that raises its logit, ahead of the final norm."""
    rows, norm = affine(unembedder(subject.model))[0].t()[ids], final_norm(subject.model)
    assert isinstance(norm.weight, Tensor)
    rows = rows * norm.weight
    return rows - rows.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else rows


def predicted_sources(
    subject: Subject, stream: Float[Tensor, "batch pos d"], ids: Int[Tensor, "batch pos"], share: float
) -> Bool[Tensor, "batch pos key"]:
    """For each position, the earlier ones (and itself) whose tokens a logit lens on the stream predicts most."""
    length = ids.shape[1]
    rows = []
    for row, tokens in zip(stream, ids, strict=True):
        predicted = subject.read_out(row, tokens).float()
        rows.append(predicted.masked_fill(torch.ones_like(predicted, dtype=torch.bool).triu(1), -torch.inf))
    rank = torch.stack(rows).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    allowed = torch.tensor([ceil(share * (place + 1)) for place in range(length)], device=ids.device)
    return rank < allowed[:, None]


def _log_probabilities(heads: Heads, stream: Float[Tensor, "passage pos d"]) -> Float[Tensor, "passage pos vocab"]:
    return heads.subject.read_out(stream).float().log_softmax(-1)
