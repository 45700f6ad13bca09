"""S-inhibition heads: they tell the name movers not to look at the subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.graph import Graph
from circuitlit.heads.effects import head_reader
from circuitlit.heads.path_patching import PatchBed, changes, path_patch, seen_by_layer
from circuitlit.heads.places import NamePlaces
from circuitlit.heads.roles import Head


@dataclass(frozen=True)
class PositionSignal:
    """What a head's output from prompts with swapped names does through the queries of name movers.

    Attributes:
        metric: mean change of the logit difference, in logits.
        to_io: mean change of the name movers' attention from the end to the indirect object.
        to_s1: the same to the subject's first mention.
    """

    metric: float
    to_io: float
    to_s1: float

    @property
    def inhibits(self) -> bool:
        """True where the signal turns the name movers from the indirect object to the subject, which does harm."""
        return self.metric < 0 and self.to_io < 0 and self.to_s1 > 0


@torch.no_grad()
def position_signal(
    swapped: PatchBed,
    places: Sequence[NamePlaces],
    sender: int,
    movers: Sequence[Head],
    through_mlps: bool = False,
    looks: Float[Tensor, "name mover pair"] | None = None,
) -> PositionSignal:
    """Patch a head's output from swapped prompts into the queries of name movers.

    Args:
        swapped: pairs whose other prompts are `NamePlaces.swapped`: same tokens, opposite positions of the names.
        places: of each batch.
        sender: the head, by its place among the writers.
        movers: name movers, `(layer, head)`; those that do not see the sender do not change.
        through_mlps: as in `path_patch`.
        looks: `mover_attention` of the clean run, if it is there already.

    Source: Wang et al. (arXiv 2211.00593) appendix A; criteria as in arXiv 2407.10827.
    """
    receivers = query_readers(swapped.graph, movers)
    metric = path_patch(swapped, [sender], receivers, through_mlps) - swapped.metric
    clean = mover_attention(swapped, places, movers) if looks is None else looks
    patched = mover_attention(swapped, places, movers, sender, through_mlps)
    to_io, to_s1 = (patched - clean).mean((1, 2)).tolist()
    return PositionSignal(float(metric.mean()), to_io, to_s1)


@torch.no_grad()
def mover_attention(
    bed: PatchBed,
    places: Sequence[NamePlaces],
    movers: Sequence[Head],
    sender: int | None = None,
    through_mlps: bool = False,
) -> Float[Tensor, "name mover pair"]:
    """Attention of name movers from the end to the indirect object and to the subject's first mention.

    Args:
        bed: pairs.
        places: of each batch.
        movers: `(layer, head)`.
        sender: a head whose other output their queries see; None is the clean run.
        through_mlps: as in `path_patch`.
    """
    found = []
    for number, where in enumerate(places):
        deltas = {} if sender is None else changes(bed, number, [sender], through_mlps)
        patterns = {}
        for layer in {layer for layer, _ in movers}:
            seen = seen_by_layer(bed, number, deltas, layer)
            patterns[layer] = bed.heads.pattern(layer, bed.streams[number][layer], seen)
        rows = [
            torch.stack([_at(patterns[layer][:, head], where.end, key) for layer, head in movers])
            for key in (where.io, where.s1)
        ]
        found.append(torch.stack(rows))
    return torch.cat(found, 2)


def query_readers(graph: Graph, heads: Sequence[Head]) -> list[int]:
    """The q readers of some heads."""
    return [head_reader(graph, layer, head, "q") for layer, head in heads]


def name_attention(bed: PatchBed, places: Sequence[NamePlaces]) -> dict[str, Float[Tensor, "layer head"]]:
    """Mean attention of every head from the end to each of the three names, from 0 to 1."""
    graph = bed.graph
    sums = {name: torch.zeros(graph.n_layers, graph.n_heads) for name in ("io", "s1", "s2")}
    total = sum(len(batch) for batch in bed.batches)
    for number, where in enumerate(places):
        for layer in range(graph.n_layers):
            pattern = bed.heads.pattern(layer, bed.streams[number][layer])
            for name, sum_ in sums.items():
                sum_[layer] += torch.stack(
                    [_at(pattern[:, h], where.end, getattr(where, name)).sum() for h in range(graph.n_heads)]
                ).cpu()
    return {name: sum_ / total for name, sum_ in sums.items()}


def _at(attention: Float[Tensor, "batch pos key"], query: Tensor, key: Tensor) -> Float[Tensor, "batch"]:
    rows = torch.arange(len(attention), device=attention.device)
    return attention[rows, query, key]
