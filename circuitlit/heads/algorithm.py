"""The IOI algorithm: which heads play its parts, and which share of the effects in their circuit they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate, statistic
from circuitlit.heads.copy_suppression import copy_suppression_scores
from circuitlit.heads.effects import Effects, head_reader, head_writers, path_effects
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.places import NamePlaces
from circuitlit.heads.roles import Head, heads_of, mark, top_heads
from circuitlit.heads.s_inhibition import mover_attention, name_attention, position_signal, query_readers
from circuitlit.heads.watch import Watch, unwatched

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
    count = int(inside.sum())
    share = statistic(lambda m: m[inside].abs().sum(0) / m.abs().sum(0), deltas, effects.groups).estimate()
    size = deltas.mean(1).abs()
    generator = torch.Generator().manual_seed(seed)
    sets = torch.stack([torch.randperm(len(kept), generator=generator)[:count] for _ in range(RANDOM_SETS)])
    drawn = size[sets].sum(1) / size.sum()
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Share(count, share, Estimate(float(drawn.mean()), low, high))


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
    suppressors: int | None = None,
    watch: Watch = unwatched,
    only: Sequence[int] | None = None,
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
        suppressors: copy suppression is looked for in at most so many heads, those with the largest direct effects.
        watch: sees the heads go by.
        only: writers that are looked at, so that shares are of their effects alone; None looks at all heads.

    Source: arXiv 2407.10827, metrics of the IOI algorithm; Wang et al. (arXiv 2211.00593).
    """
    graph = bed.graph
    everyone = head_writers(graph)
    members = everyone if pool is None else [everyone[i] for i in pool.flatten().nonzero().flatten().tolist()]
    senders = everyone if only is None else list(only)
    search = _Search(bed, places, scores, thresholds, members, most, through_mlps, watch, senders)
    found = search.ends(passages, suppressors)
    if parts == "B" or not search.inhibition(found):
        return found
    if parts == "D":
        search.tertiary(found)
    return found


@dataclass(frozen=True)
class _Search:
    """What all parts are looked for with; see `ioi_algorithm`. Each part adds to what was found before."""

    bed: PatchBed
    places: Sequence[NamePlaces]
    scores: dict[str, Float[Tensor, "layer head"]]
    thresholds: Thresholds
    members: list[int]
    most: int
    through_mlps: bool
    watch: Watch
    senders: list[int]

    def effects(self, receivers: Sequence[int]) -> Effects:
        """Of every sender on some receivers."""
        return path_effects(self.bed, self.senders, receivers, self.through_mlps, self.watch)

    def writers(self, heads: Sequence[Head]) -> list[int]:
        """Places of heads among the writers."""
        return [self.bed.graph.writers_before(layer) + head for layer, head in heads]

    def strongest(self, heads: list[Head], grid: Tensor, count: int | None) -> list[Head]:
        """Those with the largest effects; None takes all."""
        return top_heads(torch.where(mark(self.bed.graph, heads), grid.abs(), torch.nan), count or grid.numel())

    def ends(self, passages: Tensor | None, suppressors: int | None) -> Algorithm:
        """Part B: heads that write names, or against them, to the logits."""
        direct = self.effects([self.bed.graph.n_readers - 1])
        effect = direct.grid(self.bed.graph)
        looks = name_attention(self.bed, self.places)
        grids = {"direct_effect": effect, **{f"attention_to_{name}": grid for name, grid in looks.items()}}
        at_io = (looks["io"] > looks["s1"]) & (looks["io"] > looks["s2"])
        copying = {name: self.scores[name] > self.thresholds.copying for name in ("copying", "negative_copying")}
        roles: dict[str, list[Head]] = {"name_mover": heads_of(copying["copying"] & (effect < 0) & at_io)}
        roles["negative_name_mover"] = heads_of(copying["negative_copying"])
        roles["copy_suppression"] = []
        if passages is not None:
            looked = heads_of(effect.abs() > self.thresholds.suppression_effect)
            looked = self.strongest(looked, effect, suppressors)
            grids["copy_suppression"] = copy_suppression_scores(self.bed.heads, passages, looked, watch=self.watch)
            roles["copy_suppression"] = heads_of(grids["copy_suppression"] > self.thresholds.copy_suppression)
        ends = {head for heads in roles.values() for head in heads}
        shares = {"B": effect_share(direct, self.writers([*ends]), self.members)}
        roles |= {"s_inhibition": [], "induction": [], "duplicate_token": []}
        return Algorithm(roles, shares, grids)

    def inhibition(self, found: Algorithm) -> bool:
        """Part C: heads that steer the name movers' queries by the names' positions; False without name movers."""
        targets = self.strongest(found.roles["name_mover"], found.grids["direct_effect"], self.most)
        if not any(layer for layer, _ in targets):
            return False
        on_queries = self.effects(query_readers(self.bed.graph, targets))
        effect = found.grids["effect_on_name_movers"] = on_queries.grid(self.bed.graph)
        pairs = zip(self.places, self.bed.batches, strict=True)
        swapped = self.bed.with_other([where.swapped(batch) for where, batch in pairs])
        looks = mover_attention(swapped, self.places, targets)
        candidates = heads_of(effect < self.thresholds.effect)
        found.roles["s_inhibition"] = [
            head
            for head in self.watch(candidates, "position signals")
            if position_signal(
                swapped, self.places, self.writers([head])[0], targets, self.through_mlps, looks
            ).inhibits
        ]
        found.shares["C"] = effect_share(on_queries, self.writers(found.roles["s_inhibition"]), self.members)
        return True

    def tertiary(self, found: Algorithm) -> None:
        """Part D: heads that tell S-inhibition heads which name was said twice; nothing without such heads."""
        graph, roles = self.bed.graph, found.roles
        pure = [head for head in roles["s_inhibition"] if head not in roles["copy_suppression"]]
        targets = self.strongest(pure, found.grids["effect_on_name_movers"], self.most)
        if not any(layer for layer, _ in targets):
            return
        on_values = self.effects(sorted({head_reader(graph, layer, head, "v") for layer, head in targets}))
        effect = found.grids["effect_on_s_inhibition"] = on_values.grid(graph)
        for role in ("induction", "duplicate_token"):
            high = self.scores[role] > self.scores[role].nanmean()
            roles[role] = heads_of(high & (effect < self.thresholds.effect))
        chosen = {*roles["induction"], *roles["duplicate_token"]}
        found.shares["D"] = effect_share(on_values, self.writers([*chosen]), self.members)
