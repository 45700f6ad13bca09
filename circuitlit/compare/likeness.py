"""How alike two nodes are in what they write and where they attend: cosine, CKA, attention divergence, their null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.compare.writes import Writers
from circuitlit.errors import UserError
from circuitlit.graph.nodes import node_name, place_of
from circuitlit.heads.attention import Heads
from circuitlit.model import Subject
from circuitlit.tasks import Batch

LEAST = 4  # tokens that the unbiased estimate of HSIC needs


def centred_cosine(ours: Float[Tensor, "token d"], theirs: Float[Tensor, "token d"]) -> float:
    """Mean over tokens of the cosine between two writes, each less its mean over the tokens; in [-1, 1], 1 is equal."""
    pair = [x.double() - x.double().mean(0) for x in (ours, theirs)]
    return float(torch.cosine_similarity(*pair, dim=-1).mean())


def hsic(grams: Float[Tensor, "one token token"], others: Float[Tensor, "two token token"]) -> Float[Tensor, "one two"]:
    """Unbiased HSIC of every two Gram matrices; may be negative, 0 on average for independent features.

    Source: Song et al., JMLR 13 (2012), equation 5, as used by Kornblith et al., arXiv 1905.00414.
    """
    n = grams.shape[-1]
    off = 1 - torch.eye(n, dtype=grams.dtype, device=grams.device)
    k, m = grams * off, others * off
    rows, cols = k.sum(-1), m.sum(-1)
    trace = k.flatten(1) @ m.flatten(1).T
    sums = rows.sum(-1)[:, None] * cols.sum(-1)[None] / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * rows @ cols.T) / (n * (n - 3))


def cka(ours: Float[Tensor, "one token d"], theirs: Float[Tensor, "two token d"]) -> Float[Tensor, "one two"]:
    """Linear CKA, debiased, of every two sets of writes on the same tokens: 1 up to rotation and scale, 0 by chance.

    NaN where a node writes the same on all tokens.

    Raises:
        UserError: fewer than four tokens.

    Source: Kornblith et al., arXiv 1905.00414, with the unbiased HSIC because tokens are fewer than dimensions.
    """
    if ours.shape[1] < LEAST:
        raise UserError(f"{ours.shape[1]} tokens are too few to compare what nodes write; raise compare.reuse.pairs")
    grams = [x.double() @ x.double().transpose(1, 2) for x in (ours, theirs)]
    own = [torch.stack([hsic(g[None], g[None])[0, 0] for g in side]) for side in grams]
    scale = (own[0][:, None] * own[1][None]).clamp(min=0).sqrt()
    return torch.where(scale > 0, hsic(*grams) / scale, torch.nan)


def js_divergence(
    ours: Float[Tensor, "one token key"], theirs: Float[Tensor, "two token key"]
) -> Float[Tensor, "one two"]:
    """Jensen-Shannon divergence of every two heads' attention, mean over query tokens, in nats: from 0 to log 2."""
    p, q = ours.double()[:, None], theirs.double()[None]
    middle = torch.special.entr((p + q) / 2).sum(-1)
    return (middle - (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2).mean(-1).clamp(min=0)


@dataclass(frozen=True)
class Likeness:
    """A node of one model beside the same node of another, on the same tokens.

    Attributes:
        node: its name.
        cosine: of `centred_cosine`.
        cka: of `cka`; None where a node writes a constant.
        attention: of `js_divergence`; None for MLPs, and where attention is not defined.
        cosine_null, cka_null: 95th percentile over mismatched nodes: other heads of the layer, in the other model; for
            an MLP, those of other layers. None without any.
        attention_null: 5th percentile over mismatched heads.
        alike: whether CKA exceeds its null; None where one of them does not exist.
    """

    node: str
    cosine: float
    cka: float | None
    attention: float | None
    cosine_null: float | None
    cka_null: float | None
    attention_null: float | None
    alike: bool | None


def marked(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Tokens that have a role in the task, the last of the prompt among them."""
    real = torch.arange(batch.clean.shape[1], device=batch.clean.device) < batch.lengths[:, None]
    return (batch.roles != 0) & real


@torch.no_grad()
def likenesses(base: Subject, tuned: Subject, batches: Sequence[Batch]) -> dict[str, Likeness]:
    """Every head and MLP of two models of one graph, at the tokens that have a role in the task.

    Raises:
        UserError: too few tokens.
    """
    batches = [batch.to(base.device) for batch in batches]
    ours, theirs = (_Written(subject, batches) for subject in (base, tuned))
    graph, found = base.graph, {}
    attention = _attention(base, tuned, batches)
    mlps = [node for node in graph.nodes if place_of(node)[1] is None]
    for layer in range(graph.n_layers):
        heads = [node_name(layer, head) for head in range(graph.n_heads)]
        found |= _group(heads, ours.stacked(heads), theirs.stacked(heads), attention[layer] if attention else None)
    found |= _group(mlps, ours.stacked(mlps), theirs.stacked(mlps), None)
    return {node: found[node] for node in graph.nodes}


class _Written:
    """What a subject's nodes write at the marked tokens of some pairs."""

    def __init__(self, subject: Subject, batches: Sequence[Batch]) -> None:
        writers = Writers(subject)
        self._records = [(writers.record(batch.clean), marked(batch)) for batch in batches]

    def stacked(self, nodes: Sequence[str]) -> Float[Tensor, "node token d"]:
        return torch.stack([torch.cat([write(node)[where] for write, where in self._records]) for node in nodes])


def _attention(base: Subject, tuned: Subject, batches: Sequence[Batch]) -> list[Float[Tensor, "one two"]] | None:
    """Divergences of every two heads, layer by layer; None for models whose attention is not plain."""
    if base.graph.coupled or base.graph.inputs > 1:
        return None
    sides = [Heads(subject) for subject in (base, tuned)]
    sums: list[Tensor] = []
    for batch in batches:
        where, patterns = marked(batch), [side.patterns(batch.clean) for side in sides]
        for layer, pair in enumerate(zip(*patterns, strict=True)):
            own = [pattern.transpose(0, 1)[:, where] for pattern in pair]
            part = js_divergence(own[0], own[1]) * int(where.sum())
            if layer < len(sums):
                sums[layer] += part
            else:
                sums.append(part)
    count = sum(int(marked(batch).sum()) for batch in batches)
    return [total / count for total in sums]


def _group(
    nodes: Sequence[str],
    ours: Float[Tensor, "node token d"],
    theirs: Float[Tensor, "node token d"],
    attention: Float[Tensor, "node node"] | None,
) -> dict[str, Likeness]:
    """Nodes that are each other's null."""
    alike = cka(ours, theirs)
    cosine = torch.tensor([[centred_cosine(one, two) for two in theirs] for one in ours], dtype=torch.float64)
    nulls = _percentile(cosine, 0.95), _percentile(alike, 0.95), _percentile(attention, 0.05)
    found = {}
    for i, node in enumerate(nodes):
        own, apart = _number(alike[i, i]), None if attention is None else float(attention[i, i])
        more = None if own is None or nulls[1] is None else own > nulls[1]
        found[node] = Likeness(node, float(cosine[i, i]), own, apart, *nulls, more)
    return found


def _percentile(values: Float[Tensor, "node node"] | None, share: float) -> float | None:
    """Percentile of what stands off the diagonal."""
    if values is None or len(values) < 2:
        return None
    off = values[~torch.eye(len(values), dtype=torch.bool, device=values.device)]
    return _number(torch.nanquantile(off.double(), share))


def _number(value: Tensor) -> float | None:
    return None if math.isnan(float(value)) else float(value)


@torch.no_grad()
def attention_change(base: Subject, tuned: Subject, batches: Sequence[Batch]) -> Float[Tensor, "pair"] | None:
    """Divergence of every head's attention between the models, mean over heads and marked tokens, nats a pair.

    None for models whose attention is not plain.
    """
    if base.graph.coupled or base.graph.inputs > 1:
        return None
    sides, found = [Heads(subject) for subject in (base, tuned)], []
    for batch in (batch.to(base.device) for batch in batches):
        where = marked(batch).double()
        total = torch.zeros_like(where)
        for pair in zip(*(side.patterns(batch.clean) for side in sides), strict=True):
            p, q = (pattern.double() for pattern in pair)
            middle = torch.special.entr((p + q) / 2).sum(-1)
            apart = middle - (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2
            total += apart.clamp(min=0).mean(1)
        found.append((total * where).sum(1) / where.sum(1) / base.graph.n_layers)
    return torch.cat(found).cpu()
