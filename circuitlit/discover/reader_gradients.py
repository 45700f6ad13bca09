"""Exact gradients at every reader's input from one stock forward and backward, and what edges score by them.

With nothing patched all heads of a block read the same residual stream `x`, so that the gradient at the input of one
head's q, k or v is `J_norm(x)^T W[head]^T` times the gradient at the projection's output. No head needs a copy of the
stream of its own, and any stock attention kernel will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.masked import Ablated, Reference, References
from circuitlit.masked.block import MaskedBlock
from circuitlit.model import Reads, record, record_reads, replace_writers
from circuitlit.objective import each_pair, kl_divergence, logit_difference_error
from circuitlit.tasks.pair import Batch

LEAST_AT_CLEAN = (kl_divergence, logit_difference_error)
Each = Callable[[Int[Tensor, "pair"], Float[Tensor, "pair copies edge"]], None]  # is given pairs and their own scores


@dataclass(frozen=True)
class Trace:
    """One forward and backward of the stock model.

    Attributes:
        gradients: of the batch's summed objective, at every reader's input ahead of its norm, for real tokens only; at
            least float32.
        writers: what the writers put out, all tokens.
    """

    gradients: Float[Tensor, "reader token d"]
    writers: Ablated


def trace(
    loss: MaskedLoss,
    batch: Batch,
    teacher: Float[Tensor, "batch answer vocab"],
    embed: Float[Tensor, "batch pos d"] | None = None,
    heads: Mapping[int, Float[Tensor, "batch pos width"]] | None = None,
    mlps: Mapping[int, Float[Tensor, "batch pos d"]] | None = None,
) -> Trace:
    """Gradients of the objective on the clean prompts, with some writers' outputs replaced.

    Args:
        loss: the objective and the model.
        batch: the pairs, on the model's device.
        teacher: the full model's log-probabilities.
        embed, heads, mlps: outputs in place of the writers' own; see `replace_writers`.

    Raises:
        UserError: the objective is not finite.
    """
    subject = loss.model.subject
    refuse_unusual_writers(loss, coupled=bool(heads))
    anchor = (subject.embedded(batch.clean) if embed is None else embed).detach().requires_grad_()
    with (
        torch.enable_grad(),
        replace_writers(subject, anchor, heads, mlps),
        record(subject) as writers,
        record_reads(subject) as reads,
    ):
        logits = subject.logits(batch.clean, batch.positions)
        value = each_pair(loss.objective, logits, teacher, batch).sum()
        if not bool(value.isfinite()):
            raise UserError(
                f"{loss.objective.__name__} is not finite on some pairs; a metric needs a wrong answer or choices in "
                "each pair, else set method.objective.path=circuitlit.objective.answer_cross_entropy"
            )
        projected = [output for outputs in reads.projected for output in outputs]
        kinds = [part for part in (reads.mlp_normed, reads.routed) if part]
        inputs = [seen for of_layer in zip(*kinds, strict=True) for seen in of_layer]
        grads = torch.autograd.grad(value, [*projected, *inputs, *reads.final_normed])
    count = len(projected)
    gradients = _at_inputs(loss, reads, grads[:count], grads[count:-1], grads[-1], real_tokens(batch))
    parts = [writers.embed[0], torch.stack(writers.heads, 1), torch.stack(writers.mlps, 1)]
    return Trace(gradients, Ablated(*(part.detach() for part in parts)))


def refuse_unusual_writers(loss: MaskedLoss, coupled: bool) -> None:
    """Refuse a writer of positions and, where a method would go wrong with it, a norm behind the attention.

    The gradient of a stock run goes through such a norm; heads that are replaced would be scaled by it once more.

    Raises:
        UserError: the model has what the method does not see.
    """
    graph = loss.model.graph
    if (graph.coupled and coupled) or graph.inputs > 1:
        raise UserError(
            "this method does not see a norm behind the attention (Gemma) or a writer of positions (Tracr); "
            "set method=mask_gradients, method=exact or method=acdc"
        )


def real_tokens(batch: Batch) -> Int[Tensor, "token"]:
    """Places of the tokens that are no padding, among all of the batch."""
    length = batch.clean.shape[1]
    return (torch.arange(length, device=batch.clean.device) < batch.lengths[:, None]).flatten().nonzero()[:, 0]


def _at_inputs(
    loss: MaskedLoss,
    reads: Reads,
    projected: tuple[Tensor, ...],
    mlp_normed: tuple[Tensor, ...],
    final_normed: Tensor,
    tokens: Int[Tensor, "token"],
) -> Float[Tensor, "reader token d"]:
    """Carry gradients from projections and normed inputs back to each reader's own input."""
    subject, graph = loss.model.subject, loss.model.graph
    width = final_normed.shape[-1]
    dtype = torch.promote_types(final_normed.dtype, torch.float32)
    gradients = final_normed.new_empty(graph.n_readers, len(tokens), width, dtype=dtype)

    def pick(tensor: Tensor) -> Float[Tensor, "token _"]:
        return tensor.flatten(0, 1)[tokens]

    outputs = iter(projected)
    for layer, block in enumerate(_blocks(loss)):
        rows = graph.reader_rows(layer)
        own = [pick(next(outputs)) for _ in subject.anatomy.projections]
        q, k, v = subject.anatomy.split(own, graph)
        weights = (block.q_weight, block.k_weight, block.v_weight)
        normed = [torch.einsum("tho,hdo->htd", g, w) for g, w in zip((q, k, v), weights, strict=True)]
        attention = through_norm(block.attn_norm, pick(reads.attention[layer]), torch.cat(normed))
        split, count = graph.mlp_row(layer), graph.mlp_readers
        gradients[rows.start : split] = attention
        mlp = torch.stack([pick(grad) for grad in mlp_normed[count * layer : count * (layer + 1)]])
        gradients[split : rows.stop] = through_norm(block.mlp_norm, pick(reads.mlp[layer]), mlp)
    gradients[-1] = through_norm(loss.model.final_norm, pick(reads.final[0]), pick(final_normed)[None])[0]
    return gradients


def through_norm(
    norm: nn.Module, seen: Float[Tensor, "token d"], gradients: Float[Tensor, "reader token d"]
) -> Float[Tensor, "reader token d"]:
    """Gradients at a norm's output carried back to its input, by autograd through the model's own module."""
    with torch.enable_grad():
        inputs = seen.detach().expand(gradients.shape).requires_grad_()
        (carried,) = torch.autograd.grad(norm(inputs), inputs, gradients)
    return carried


def contract(
    loss: MaskedLoss, gradients: Float[Tensor, "reader token d"], moves: Ablated, batch: Batch, by_pair: bool = False
) -> Float[Tensor, "*pair copies edge"]:
    """Products of what ablation adds to each writer's output with the gradients at its readers, summed over the batch.

    Args:
        loss: the model and the layout of the scores.
        gradients: at the readers' inputs, real tokens only.
        moves: the ablated minus the clean output of every writer.
        batch: the pairs.
        by_pair: True sums over the tokens of each pair alone.

    Returns:
        The first-order increase of the batch's summed objective as each edge is ablated, one row per token role.
    """
    graph, copies = loss.layout.graph, loss.layout.copies
    tokens = real_tokens(batch)
    groups = [members for part in _parts(batch, by_pair) for members in _by_role(part, batch, tokens, copies)]
    dense = gradients.new_zeros(len(groups), graph.n_readers, graph.n_writers)
    for columns, first, outputs in writer_chunks(loss, moves, tokens):
        outputs = outputs.to(gradients.dtype)
        for number, members in enumerate(groups):
            seen = gradients[first:, members].flatten(1)
            dense[number, first:, columns] = seen @ outputs[:, members].flatten(1).t()
    scores = dense.flatten(1)[:, graph.placed("dense_index", dense.device)]
    return scores.unflatten(0, (-1, copies)) if by_pair else scores


def _parts(batch: Batch, by_pair: bool) -> list[slice]:
    """Real tokens of each pair, or of all."""
    if not by_pair:
        return [slice(None)]
    ends = batch.lengths.cumsum(0).tolist()
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _by_role(part: slice, batch: Batch, tokens: Int[Tensor, "token"], copies: int) -> list[slice | Tensor]:
    """The real tokens of a part that have each role."""
    if copies == 1:
        return [part]
    roles, first = batch.roles.flatten()[tokens][part], part.start or 0
    return [(roles == copy).nonzero()[:, 0] + first for copy in range(copies)]


def writer_chunks(
    loss: MaskedLoss, outputs: Ablated, tokens: Int[Tensor, "token"]
) -> Iterator[tuple[slice, int, Float[Tensor, "writer token d"]]]:
    """What writers add to the residual stream, block by block: all at once would be as large as all readers together.

    Yields:
        The writers' places in the graph, the first reader that sees one of them, and their outputs at some tokens.
    """
    graph = loss.model.graph
    yield slice(0, 1), 0, outputs.embed.flatten(0, 1)[tokens][None]
    for layer, block in enumerate(_blocks(loss)):
        results = outputs.heads[:, layer].flatten(0, 1)[tokens].unflatten(-1, (graph.n_heads, -1))
        heads = torch.einsum("tho,hod->htd", results, block.out_weight)
        mlp = outputs.mlps[:, layer].flatten(0, 1)[tokens]
        start = graph.writers_before(layer)
        columns = slice(start, start + graph.writers_per_layer)
        yield columns, graph.mlp_row(layer), torch.cat([heads, mlp[None]])


def _blocks(loss: MaskedLoss) -> list[MaskedBlock]:
    return cast("list[MaskedBlock]", list(loss.model.blocks))


def ablation_moves(clean: Ablated, ablated: Ablated) -> Ablated:
    """What ablating each writer adds to its output: ablated minus clean."""
    return Ablated(*(b - a for a, b in zip(vars(clean).values(), vars(ablated).values(), strict=True)))


def mean_scores(
    loss: MaskedLoss,
    references: References,
    batches: Iterable[Batch],
    of_batch: Callable[[Batch, Reference], Float[Tensor, "*pair copies edge"]],
    method: str,
    each: Each | None = None,
    **details: object,
) -> EdgeScores:
    """Edge scores as a mean over all examples, whatever their batches.

    Args:
        loss: the layout of the scores.
        references: teacher and ablated writers.
        batches: training pairs.
        of_batch: scores summed over a batch's examples; with `each`, those of every example.
        method: name for the result.
        each: is given every batch's examples and their scores.
        details: settings of the method.

    Raises:
        ValueError: no batch.
    """
    device = references.subject.device
    total, count = torch.zeros(loss.layout.copies, loss.layout.graph.n_edges, dtype=torch.float64), 0
    for batch in batches:
        batch = batch.to(device)
        found = of_batch(batch, references(batch))
        if each is not None:
            each(batch.index.cpu(), found.cpu())
            found = found.sum(0)
        total += found.double().cpu()
        count += len(batch)
    if count == 0:
        raise ValueError(f"{method} needs at least one batch of pairs")
    values = (total / count).to(torch.promote_types(references.subject.model.dtype, torch.float32))
    facts: dict[str, object] = {"pairs": count, **details}
    return EdgeScores(loss.layout.graph, values, method, loss.layout.roles, True, facts, unit=loss.unit)


def refuse_flat_objective(loss: MaskedLoss, method: str) -> None:
    """Refuse an objective that is least at the clean run, where its gradient is zero or has no direction.

    Raises:
        UserError: it is such an objective.
    """
    if loss.objective in LEAST_AT_CLEAN:
        raise UserError(
            f"method={method} takes the gradient at the clean run, where {loss.objective.__name__} has none; "
            "leave method.objective at the task's metric, or use method=eap_ig"
        )
