"""Whether the heads of a role matter: what ablating them does, beside ablating random heads of the same layers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.matched import different_sets
from circuitlit.evaluate.statistics import Estimate, Groups, mean_estimate
from circuitlit.evaluate.testing import rank_p, until_clear
from circuitlit.graph import Graph
from circuitlit.heads.attention import Heads, Stream, run_streams
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.roles import Head
from circuitlit.heads.tail import run_tail
from circuitlit.heads.watch import Watch, unwatched
from circuitlit.masked import Ablated, mean_writers, run_writers
from circuitlit.masked.ablation import Kind
from circuitlit.model import Subject, take_positions
from circuitlit.objective import task_metric

Behaviour = Callable[[Sequence[Head]], Float[Tensor, "example"]]


@dataclass(frozen=True)
class CausalCheck:
    """Ablating a role's heads and equally many random ones in the same layers.

    Attributes:
        heads: those of the role.
        intact: the behaviour of the whole model, in its own unit.
        effect: change when the role's heads are ablated.
        random: change when random heads are; the interval is over draws and examples.
        difference: effect minus random effect.
        rank_p: share of random draws that change the mean at least as far, up or down, or in the one direction that
            was named before; in (0, 1]. The smallest value possible is one over the draws plus one.
        draws: how many random sets were drawn; fewer than asked for where chance soon reaches the effect, or where a
            small model has no more.
    """

    heads: tuple[Head, ...]
    intact: Estimate
    effect: Estimate
    random: Estimate
    difference: Estimate
    rank_p: float
    draws: int


def causal_check(
    behaviour: Behaviour,
    graph: Graph,
    heads: Sequence[Head],
    draws: int,
    seed: int = 0,
    spared: Sequence[Head] = (),
    watch: Watch = unwatched,
    groups: Groups = None,
    sets: Sequence[Sequence[Head]] | None = None,
    direction: Literal[-1, 1] | None = None,
) -> CausalCheck:
    """Ablate some heads, and layer-matched random ones up to `draws` times.

    The test is two-sided, by absolute changes of the mean, unless a direction is given that is known without these
    examples; then a change the other way is never significant.

    Args:
        behaviour: what is measured.
        graph: the model's.
        heads: those of the role.
        draws: most random sets; see `until_clear`.
        seed: of the sets.
        spared: heads that no random set may hold either, such as further ones of the role.
        watch: sees the sets go by.
        groups: which examples share a sentence; None where each stands alone.
        sets: random sets, where they are no heads; None draws layer-matched heads.
        direction: 1 where the heads were chosen to raise the behaviour when ablated, -1 where to lower it; None where
            either counts.

    Raises:
        UserError: fewer other heads in the model than random sets need.
    """
    intact = behaviour(())
    changed = behaviour(heads) - intact
    sets = matched_heads(graph, heads, draws, seed, spared) if sets is None else sets

    def size(change: Tensor) -> float:
        mean = float(change.mean())
        return abs(mean) if direction is None else mean * direction

    own = size(changed)
    tries = (behaviour(drawn) - intact for drawn in watch(sets, "random heads"))
    found = until_clear([own], tries, lambda other: [size(other)])
    others = torch.stack(found)
    return CausalCheck(
        tuple(heads),
        mean_estimate(intact, groups),
        mean_estimate(changed, groups),
        mean_estimate(others, groups),
        mean_estimate(changed - others, groups),
        rank_p(own, [size(other) for other in found]),
        len(found),
    )


def matched_heads(
    graph: Graph, heads: Sequence[Head], draws: int, seed: int, spared: Sequence[Head] = ()
) -> list[list[Head]]:
    """Different random sets of as many heads, from the same layers or near them, none of them in `heads` or `spared`.

    The heads of a layer are matched by draws from the free heads of that layer; where these are fewer than twice as
    many, or give fewer than `draws` sets, by draws from the nearest layers too, so that a layer full of the role still
    has a random control. Of a small model there are fewer sets: the same one again would say nothing of chance.

    Raises:
        UserError: too few heads are left for as large a set.
    """
    taken = {*heads, *spared}
    free = [(layer, h) for layer in range(graph.n_layers) for h in range(graph.n_heads) if (layer, h) not in taken]
    if len(free) < len(heads):
        said = "take fewer heads (heads.top, or knowledge.top)"
        raise UserError(f"{len(heads)} heads leave too few others for a random control; {said}")
    if comb(len(free), len(heads)) <= draws:
        return [list(one) for one in combinations(free, len(heads))]
    counts = sorted(Counter(layer for layer, _ in heads).items())
    return different_sets(partial(_matched, free, counts), draws, seed, range(graph.n_layers))


def _matched(free: Sequence[Head], counts: Sequence[tuple[int, int]], wide: int, draw: random.Random) -> list[Head]:
    """One set: for each layer so many of the free heads nearest to it, up to `wide` layers away or as far as needed."""
    drawn: list[Head] = []
    for layer, count in counts:
        left = [head for head in free if head not in drawn]
        furthest = max(abs(head[0] - layer) for head in left)
        reach = next((r for r in range(wide, furthest) if _within(left, layer, r) >= 2 * count), furthest)
        near = [head for head in left if abs(head[0] - layer) <= reach]
        drawn += draw.sample(near, count)
    return sorted(drawn)


def _within(heads: Sequence[Head], layer: int, reach: int) -> int:
    return sum(abs(head[0] - layer) <= reach for head in heads)


def repeat_loss(
    subject: Subject, ids: Int[Tensor, "batch pos"], fresh: Int[Tensor, "batch pos"], length: int, kind: Kind
) -> Behaviour:
    """Loss in nats per token on the repeated half of random sequences; less is better. See `repeat_score`."""
    return repeat_score(subject, ids, fresh, length, kind, "loss")


def repeat_score(
    subject: Subject,
    ids: Int[Tensor, "batch pos"],
    fresh: Int[Tensor, "batch pos"],
    length: int,
    kind: Kind,
    score: Literal["loss", "accuracy"],
) -> Behaviour:
    """Loss in nats per token, or share of tokens foreseen, on the repeated half of random sequences.

    The first repeated token cannot be foreseen and does not count.

    Args:
        subject: the frozen model.
        ids: sequences that repeat.
        fresh: as long ones that do not, where ablated heads' outputs come from.
        length: tokens before the repetition.
        kind: "interchange" (same position of a fresh sequence), "mean" (over the fresh sequences' tokens) or "zero".
        score: which of the two.
    """
    ids = ids.to(subject.device)
    source = _by_head(run_writers(subject, fresh.to(subject.device)), subject.graph)
    if kind == "mean":
        source = source.mean((0, 2), keepdim=True)
    start = ids.shape[1] - length
    target = ids[:, start + 1 :]
    every, streams = Heads(subject), run_streams(subject, ids)

    @torch.no_grad()
    def measure(heads: Sequence[Head]) -> Tensor:
        final = _ablated_stream(every, streams, _results(source, heads, kind))
        logits = subject.read_out(final[:, start:-1]).float()
        if score == "accuracy":
            return (logits.argmax(-1) == target).float().mean(1).cpu()
        return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1).cpu()

    return measure


def metric_of_pairs(bed: PatchBed, kind: Kind) -> Behaviour:
    """The task's metric on the clean prompts; ablated heads put out what they do on the corrupted ones, or its mean."""
    if kind == "mean":
        sources = [_by_head(mean_writers(bed.subject, bed.batches), bed.graph)] * len(bed.batches)
    else:
        sources = [_by_head(run_writers(bed.subject, batch.corrupted), bed.graph) for batch in bed.batches]

    @torch.no_grad()
    def metric(heads: Sequence[Head]) -> Tensor:
        parts = []
        for batch, streams, source in zip(bed.batches, bed.streams, sources, strict=True):
            final = _ablated_stream(bed.heads, streams, _results(source, heads, kind))
            parts.append(task_metric(bed.subject.read_out(take_positions(final, batch.positions)), batch))
        return torch.cat(parts).cpu()

    return metric


def _ablated_stream(heads: Heads, streams: Sequence[Stream], results: dict[Head, Tensor]) -> Stream:
    """The stream ahead of the final norm; blocks ahead of the first ablated head are known."""
    first = min((layer for layer, _ in results), default=len(heads.parts))
    return run_tail(heads, first, streams[first], replaced=results)


def _by_head(writers: Ablated, graph: Graph) -> Float[Tensor, "rows layer pos head width"]:
    return writers.heads.unflatten(-1, (graph.n_heads, -1))


def _results(
    source: Float[Tensor, "rows layer pos head width"], heads: Sequence[Head], kind: Kind
) -> dict[Head, Float[Tensor, "rows pos width"]]:
    picked = {(layer, head): source[:, layer, :, head] for layer, head in heads}
    return {head: torch.zeros_like(result) for head, result in picked.items()} if kind == "zero" else picked
