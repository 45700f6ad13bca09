"""The greater-than algorithm: heads carry the start year to the end, MLPs turn it into "later years"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate, mean_estimate
from circuitlit.graph import Circuit
from circuitlit.graph.select import nodes_of, writers_of
from circuitlit.heads.attention import Heads, run_streams
from circuitlit.heads.roles import Head, heads_of
from circuitlit.masked import Ablated, run_writers
from circuitlit.model import Subject
from circuitlit.tasks.pair import Batch


@dataclass(frozen=True)
class GreaterThan:
    """How far heads and MLPs do what the greater-than algorithm says; intervals over pairs.

    Attributes:
        looks: share of (head, pair) in which the last position attends most to the start year's last token.
        says_year: share of (head, pair) in which a head's output alone, unembedded, is highest for the start year's
            token or the next one, among all years of the pair.
        later: mean logit of later minus mean logit of other years in an MLP's output alone, mean over MLPs, logits.
        random_looks, random_says_year: the same for equally many random heads of the model.
    """

    looks: Estimate
    says_year: Estimate
    later: Estimate
    random_looks: Estimate
    random_says_year: Estimate


def mlps_to_logits(circuit: Circuit) -> list[int]:
    """Layers whose MLP has a reachable edge to the logits."""
    graph, kept = circuit.graph, circuit.reachable.any(0)
    last = kept & (graph.reader_of == graph.n_readers - 1)
    there = nodes_of(graph, last[None]).view(graph.n_layers, graph.writers_per_layer)
    return there[:, -1].nonzero()[:, 0].tolist()


def heads_into_mlps(circuit: Circuit, layers: Sequence[int]) -> list[Head]:
    """Heads with a reachable edge into one of these MLPs."""
    graph, kept = circuit.graph, circuit.reachable.any(0)
    rows = torch.tensor([graph.mlp_row(layer) for layer in layers], dtype=torch.long)
    into = kept & torch.isin(graph.reader_of, rows)
    return heads_of(graph.by_head(writers_of(graph, into[None])))


@torch.no_grad()
def greater_than_check(
    subject: Subject,
    batch: Batch,
    year: Int[Tensor, "batch"],
    heads: Sequence[Head],
    mlps: Sequence[int],
    draws: int = 20,
    seed: int = 0,
) -> GreaterThan:
    """Test the three claims on clean prompts.

    Args:
        subject: the frozen model.
        batch: pairs whose choices are years in rising order, first the right ones (later), then the wrong ones, the
            last of which is the start year itself.
        year: position of the start year's last token.
        heads: heads that feed the MLPs: `heads_into_mlps`.
        mlps: layers of the MLPs that feed the logits: `mlps_to_logits`.
        draws: random sets of heads to compare with.
        seed: of these sets.

    Source: Hanna et al. (arXiv 2305.00586) section 3; checks as in arXiv 2407.10827.
    """
    ids, end = batch.clean, batch.positions[:, 0]
    taken, run, streams = Heads(subject), run_writers(subject, ids), run_streams(subject, ids)
    graph = subject.graph
    looks = torch.zeros(graph.n_layers, graph.n_heads, len(batch))
    says = torch.zeros_like(looks)
    rows = torch.arange(len(batch), device=ids.device)
    for layer in range(graph.n_layers):
        pattern = taken.pattern(layer, streams[layer])[rows, :, end]
        looks[layer] = (pattern.argmax(-1) == year[:, None]).float().t().cpu()
        for head in range(graph.n_heads):
            says[layer, head] = _says_year(_lens(subject, _written(taken, run, layer, head, end)), batch).cpu()
    later = [_later(_lens(subject, run.mlps[rows, layer, end]), batch).cpu() for layer in mlps]
    sets = _random_heads(graph.n_layers * graph.n_heads, len(heads), draws, seed)
    none, groups = Estimate(), batch.group.cpu()
    chosen = [layer * graph.n_heads + head for layer, head in heads]

    def pair_of(values: Float[Tensor, "layer head pair"]) -> tuple[Estimate, Estimate]:
        flat = values.flatten(0, 1)
        if not chosen:
            return none, none
        return mean_estimate(flat[chosen].mean(0), groups), mean_estimate(flat[sets].mean(1), groups)

    (looks_, random_looks), (says_, random_says) = pair_of(looks), pair_of(says)
    return GreaterThan(
        looks_,
        says_,
        mean_estimate(torch.stack(later).mean(0), groups) if later else none,
        random_looks,
        random_says,
    )


def _written(heads: Heads, run: Ablated, layer: int, head: int, end: Tensor) -> Float[Tensor, "batch d"]:
    rows = torch.arange(len(end), device=end.device)
    results = run.heads[rows, layer, end].unflatten(-1, (heads.graph.n_heads, -1))
    return results[:, head] @ heads.parts[layer].out[head]


def _lens(subject: Subject, written: Float[Tensor, "batch d"]) -> Float[Tensor, "batch vocab"]:
    """Logits of one writer's output alone, through the final norm."""
    return subject.read_out(written).float()


def _says_year(logits: Float[Tensor, "batch vocab"], batch: Batch) -> Bool[Tensor, "batch"]:
    """True where the highest of the years is the start year or the next one."""
    real = batch.signs != 0
    chosen = logits.gather(1, batch.choices).masked_fill(~real, -torch.inf).argmax(1)
    start = (batch.signs < 0).long().cumsum(1).argmax(1)  # the last wrong year
    following = (batch.signs > 0).long().argmax(1)  # the first right one
    return (chosen == start) | (chosen == following)


def _later(logits: Float[Tensor, "batch vocab"], batch: Batch) -> Float[Tensor, "batch"]:
    values = logits.gather(1, batch.choices)
    right, wrong = batch.signs > 0, batch.signs < 0
    return (values * right).sum(1) / right.sum(1) - (values * wrong).sum(1) / wrong.sum(1)


def _random_heads(total: int, count: int, draws: int, seed: int) -> Int[Tensor, "draw count"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(total, generator=generator)[:count] for _ in range(draws)])
