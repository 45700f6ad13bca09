"""The IOI algorithm: which heads play its parts, and which share of the effects in their circuit they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate
from circuitlit.heads.copy_suppression import copy_suppression_scores
from circuitlit.heads.effects import Effects, head_reader, head_writers, path_effects
from circuitlit.heads.intervals import resampled_means
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.places import NamePlaces
from circuitlit.heads.roles import Head, heads_of, mark, top_heads
from circuitlit.heads.s_inhibition import name_attention, position_signal, query_readers

RANDOM_SETS = 1000


@dataclass(frozen=True)
class Thresholds:
    """What makes a head count.

    Attributes:
        copying: copying score above which a head moves (or, negated, suppresses) names.
        copy_suppression: CSPA above which a head suppresses copies.
        suppression_effect: size of the direct effect from which on CSPA is computed.
        effect: normalised effect below which an upstream head is looked at.
    """

    copying: float = 0.1
    copy_suppression: float = 0.1
    suppression_effect: float = 0.01
    effect: float = -0.001


@dataclass(frozen=True)
class Share:
    """Which part of the effects of all heads in the pool some heads have, from 0 to 1.

    Attributes:
        heads: how many were chosen.
        share: `sum over them |effect| / sum over the pool |effect|`, with its interval over pairs.
        random: the same for equally many heads drawn from the pool: mean, and the middle 95 % of the draws.
    """

    heads: int
    share: Estimate
    random: Estimate


@dataclass(frozen=True)
class Algorithm:
    """What of the IOI algorithm was found.

    Attributes:
        roles: heads by part: `name_mover`, `negative_name_mover`, `copy_suppression`, `s_inhibition`, `induction`,
            `duplicate_token` (the last two only where they serve S-inhibition heads).
        shares: `B` names' movers and suppressors, direct effects on the logits; `C` S-inhibition heads, effects on the
            name movers' queries; `D` induction and duplicate-token heads, effects on S-inhibition heads' values. A
            part without receivers has no share.
        grids: the normalised effects and other scores found on the way.
    """

    roles: dict[str, list[Head]]
    shares: dict[str, Share]
    grids: dict[str, Float[Tensor, "layer head"]]


def effect_share(effects: Effects, chosen: Sequence[int], pool: Sequence[int], seed: int = 0) -> Share:
    """Share of some writers' effects in those of a pool.

    Args:
        effects: of the pool's writers or more.
        chosen: writers; those outside the pool do not count.
        pool: writers that all together make up 1.
        seed: of the random sets.

    Source: the shares of arXiv 2407.10827, whose helper is not published: this sum of absolute effects is our reading.
    """
    kept = [place for place, writer in enumerate(effects.writers) if writer in set(pool)]
    inside = torch.tensor([effects.writers[place] in set(chosen) for place in kept], dtype=torch.bool)
    deltas = effects.deltas[kept].double()
    size, resampled = deltas.mean(1).abs(), resampled_means(deltas).abs()
    count = int(inside.sum())
    share = Estimate.of(size[inside].sum() / size.sum(), resampled[inside].sum(0) / resampled.sum(0))
    generator = torch.Generator().manual_seed(seed)
    sets = torch.stack([torch.randperm(len(kept), generator=generator)[:count] for _ in range(RANDOM_SETS)])
    drawn = size[sets].sum(1) / size.sum()
    return Share(count, share, Estimate.of(drawn.mean(), drawn))


def ioi_algorithm(
    bed: PatchBed,
    places: Sequence[NamePlaces],
    scores: dict[str, Float[Tensor, "layer head"]],
    passages: Tensor | None = None,
    pool: Bool[Tensor, "layer head"] | None = None,
    thresholds: Thresholds = Thresholds(),
    most: int = 8,
    through_mlps: bool = False,
    parts: str = "D",
) -> Algorithm:
    """Find the heads of the IOI algorithm from the logits upwards and measure their shares.

    Args:
        bed: IOI pairs whose other prompts are the corrupted ones.
        places: where the names of each batch stand.
        scores: `copying`, `negative_copying`, `induction` and `duplicate_token`.
        passages: token ids of natural text for copy suppression; None leaves it out.
        pool: heads that shares are of: those of a circuit, or all.
        thresholds: what makes a head count.
        most: at most so many heads of a part are receivers of the next path patch, those with the largest effects.
        through_mlps: as in `path_patch`.
        parts: how far up to go: "B" needs no forward but a few, "C" and "D" one path patch for each head.

    Source: arXiv 2407.10827, metrics of the IOI algorithm; Wang et al. (arXiv 2211.00593).
    """
    graph = bed.graph
    everyone = head_writers(graph)
    members = everyone if pool is None else [everyone[i] for i in pool.flatten().nonzero().flatten().tolist()]

    def writers(heads: Sequence[Head]) -> list[int]:
        return [graph.writers_before(layer) + head for layer, head in heads]

    def strongest(heads: list[Head], grid: Tensor) -> list[Head]:
        return top_heads(torch.where(mark(graph, heads), grid.abs(), torch.nan), most)

    direct = path_effects(bed, everyone, [graph.n_readers - 1], through_mlps)
    grids = {"direct_effect": direct.grid(graph)}
    looks = name_attention(bed, places)
    grids |= {f"attention_to_{name}": grid for name, grid in looks.items()}
    at_io = (looks["io"] > looks["s1"]) & (looks["io"] > looks["s2"])
    copying = {name: scores[name] > thresholds.copying for name in ("copying", "negative_copying")}
    movers = heads_of(copying["copying"] & (grids["direct_effect"] < 0) & at_io)
    roles = {"name_mover": movers, "negative_name_mover": heads_of(copying["negative_copying"])}
    suppressors: list[Head] = []
    if passages is not None:
        looked = heads_of(grids["direct_effect"].abs() > thresholds.suppression_effect)
        grids["copy_suppression"] = copy_suppression_scores(bed.heads, passages, looked)
        suppressors = heads_of(grids["copy_suppression"] > thresholds.copy_suppression)
    roles["copy_suppression"] = suppressors
    ends = {*movers, *roles["negative_name_mover"], *suppressors}
    shares = {"B": effect_share(direct, writers([*ends]), members)}
    roles |= {"s_inhibition": [], "induction": [], "duplicate_token": []}
    targets = strongest(movers, grids["direct_effect"])
    if parts == "B" or not any(layer for layer, _ in targets):
        return Algorithm(roles, shares, grids)

    on_queries = path_effects(bed, everyone, query_readers(graph, targets), through_mlps)
    grids["effect_on_name_movers"] = on_queries.grid(graph)
    swapped = bed.with_other([where.swapped(batch) for where, batch in zip(places, bed.batches, strict=True)])
    candidates = heads_of(grids["effect_on_name_movers"] < thresholds.effect)
    inhibitors = [
        head
        for head in candidates
        if position_signal(swapped, places, writers([head])[0], targets, through_mlps).inhibits
    ]
    roles["s_inhibition"] = inhibitors
    shares["C"] = effect_share(on_queries, writers(inhibitors), members)
    pure = [head for head in inhibitors if head not in suppressors]
    targets = strongest(pure, grids["effect_on_name_movers"])
    if parts == "C" or not any(layer for layer, _ in targets):
        return Algorithm(roles, shares, grids)

    values = sorted({head_reader(graph, layer, head, "v") for layer, head in targets})
    on_values = path_effects(bed, everyone, values, through_mlps)
    grids["effect_on_s_inhibition"] = on_values.grid(graph)
    for role in ("induction", "duplicate_token"):
        high = scores[role] > scores[role].nanmean()
        roles[role] = heads_of(high & (grids["effect_on_s_inhibition"] < thresholds.effect))
    tertiary = {*roles["induction"], *roles["duplicate_token"]}
    shares["D"] = effect_share(on_values, writers([*tertiary]), members)
    return Algorithm(roles, shares, grids)
