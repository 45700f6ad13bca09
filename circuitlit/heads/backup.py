"""Backup heads: which heads take over when others, such as the name movers, are ablated.

A head's direct effect is what the task's metric loses when the head's own write is replaced, at the logits alone, by
that on the corrupted prompt. Its rise is its direct effect in the run in which the others are ablated, less that which
it would have had it gone on writing what it writes in the intact run; so the final norm, which answers to every loss
of size, takes nothing over. Some head always rises a little. Chance is therefore asked twice: by ablating random heads
of the same layers, and by changing the same heads as much as their ablation does, but in random directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.evaluate.found import OK, UNMEASURABLE
from circuitlit.evaluate.statistics import Estimate, mean_estimate, ratio_estimate
from circuitlit.evaluate.testing import LEVEL, rank_p, until_clear
from circuitlit.heads.attention import heads_replaced, record_streams
from circuitlit.heads.causal import matched_heads
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.roles import Head, head_name
from circuitlit.heads.watch import Watch, unwatched
from circuitlit.masked import Ablated, run_writers
from circuitlit.model import take_positions
from circuitlit.objective import task_metric
from circuitlit.tasks.pair import Batch

SHOWN = 5  # heads with the largest rises that are kept


@dataclass(frozen=True, kw_only=True)
class Rise:
    """A head whose direct effect grows when others are ablated.

    Attributes:
        head: its name.
        before: direct effect with the ablated heads' own part gone and nobody answering, in the metric's unit.
        rise: by how much it is larger in the run in which they are ablated.
        p: share of random changes (and one for itself) under which *any* head rises as far, so it is corrected for
            all heads; the larger of random heads' and random directions'.
    """

    head: str
    before: float
    rise: Estimate
    p: float


@dataclass(frozen=True, kw_only=True)
class Backup:
    """Who takes over from some heads.

    Attributes:
        status: "OK", or "NOT MEASURABLE" where there is nobody to ablate, nobody to answer or nothing to take over: the
            direct loss is not clearly above 0.
        reason: why it is not measurable.
        ablated: heads whose output is that on the corrupted prompt.
        direct: what the metric loses at the logits, if no head answered.
        lost: what it loses in fact.
        repaired: share of the direct loss that is made good, `1 - lost / direct`.
        random_rise, turned_rise: largest rise of any head, mean over random heads and over random directions.
        rises: heads with the largest rises.
        taking_over: those of them whose p is at most .05.
        rank_p, p_holm: p of the largest rise, and the same corrected for all claims of the result.
        draws: random sets of heads, and random directions.
    """

    status: str
    reason: str | None = None
    ablated: list[str] = field(default_factory=list)
    direct: Estimate = field(default_factory=Estimate)
    lost: Estimate = field(default_factory=Estimate)
    repaired: Estimate = field(default_factory=Estimate)
    random_rise: float | None = None
    turned_rise: float | None = None
    rises: list[Rise] = field(default_factory=list)
    taking_over: list[str] = field(default_factory=list)
    rank_p: float | None = None
    p_holm: float | None = None
    draws: tuple[int, int] = (0, 0)


def find_backup(bed: PatchBed, heads: Sequence[Head], draws: int, seed: int = 0, watch: Watch = unwatched) -> Backup:
    """Ablate some heads and see which heads behind them answer, beside the answers to random changes.

    Args:
        bed: pairs on which the heads were not chosen.
        heads: to ablate, those that move names, say.
        draws: most random sets of heads, and most random directions; see `until_clear`.
        seed: of both.
        watch: sees them go by.

    Raises:
        UserError: fewer other heads in the model than random sets need.

    Source: backup name movers, Wang et al. (arXiv 2211.00593) section 3.4; self-repair and the part of it that is the
    final norm's: Rushing and Nanda (arXiv 2402.15390). Both null models are ours.
    """
    graph = bed.graph
    if not heads:
        return Backup(status=UNMEASURABLE, reason="there is no head to ablate")
    first = min(layer for layer, _ in heads)
    behind = [(layer, h) for layer in range(first + 1, graph.n_layers) for h in range(graph.n_heads)]
    able = [head for head in behind if head not in heads]
    if not able:
        return Backup(status=UNMEASURABLE, reason="no head lies behind those that are ablated")
    answers = _answers(bed, heads, able)
    names = [head_name(head) for head in heads]
    direct, lost = (mean_estimate(one, bed.groups) for one in (answers.direct, answers.lost))
    if direct.bounds is None or direct.bounds[0] <= 0:
        reason = f"without {' '.join(names)} the metric loses nothing at the logits that others could take over"
        return Backup(status=UNMEASURABLE, reason=reason, ablated=names, direct=direct, lost=lost)
    means = answers.rise.mean(1)
    largest = float(means.max())

    def highest(changed: Sequence[Head], turn: int | None = None) -> float:
        others = [head for head in behind if head not in changed]
        return float(_answers(bed, changed, others, turn).rise.mean(1).max()) if others else 0.0

    sets = watch(matched_heads(graph, heads, draws, seed), "random heads")
    turns = watch(range(seed * draws, (seed + 1) * draws), "random directions")
    chance = [
        until_clear([largest], tries, lambda one: [one])
        for tries in ((highest(drawn) for drawn in sets), (highest(heads, turn) for turn in turns))
    ]

    def p_of(value: float) -> float:
        return max(rank_p(value, made) for made in chance)

    rises = [
        Rise(
            head=head_name(able[place]),
            before=float(answers.before[place].mean()),
            rise=mean_estimate(answers.rise[place], bed.groups),
            p=p_of(float(means[place])),
        )
        for place in means.argsort(descending=True)[:SHOWN].tolist()
    ]
    random_rise, turned_rise = (sum(made) / len(made) if made else None for made in chance)
    return Backup(
        status=OK,
        ablated=names,
        direct=direct,
        lost=lost,
        repaired=ratio_estimate(answers.direct - answers.lost, answers.direct, bed.groups),
        random_rise=random_rise,
        turned_rise=turned_rise,
        rises=rises,
        taking_over=[one.head for one in rises if one.p <= LEVEL and float(one.rise.value or 0.0) > 0],
        rank_p=p_of(largest),
        draws=(len(chance[0]), len(chance[1])),
    )


@dataclass(frozen=True)
class _Answers:
    """What changing some heads does, pair by pair, in the metric's unit."""

    direct: Float[Tensor, "pair"]
    lost: Float[Tensor, "pair"]
    before: Float[Tensor, "head pair"]
    rise: Float[Tensor, "head pair"]


@torch.no_grad()
def _answers(bed: PatchBed, changed: Sequence[Head], able: Sequence[Head], turn: int | None = None) -> _Answers:
    """The direct effects of heads that are able to answer, without their answer and with it.

    The changed heads put out what they do on the corrupted prompt; with a `turn`, the difference points in a random
    direction, another for each number, the same for all pairs.
    """
    parts, out = [], {head: bed.heads.parts[head[0]].out[head[1]] for head in (*changed, *able)}
    for number, batch in enumerate(bed.batches):
        clean, other = (_by_head(bed, side[number]) for side in (bed.clean, bed.other))
        instead = {head: other[:, head[0], :, head[1]] for head in changed}
        if turn is not None:
            instead = {head: _turned(clean[:, head[0], :, head[1]], to, head, turn) for head, to in instead.items()}
        with heads_replaced(bed.subject, instead), record_streams(bed.subject) as streams:
            run = _by_head(bed, run_writers(bed.subject, batch.clean))
        intact, answering = (take_positions(s, batch.positions) for s in (bed.streams[number][-1], streams[-1]))

        def written(head: Head, results: Tensor, less: Tensor, at: Tensor = batch.positions) -> Tensor:
            return take_positions(results - less, at) @ out[head]

        def metric(stream: Tensor, batch: Batch = batch) -> Float[Tensor, "pair"]:
            return _metric(bed, stream, batch)

        silent = intact - sum(written(head, clean[:, head[0], :, head[1]], to) for head, to in instead.items())
        whole, without, with_answer = metric(intact), metric(silent), metric(answering)
        before, after = [], []
        for head in able:
            layer, place = head
            own, now, corrupted = (side[:, layer, :, place] for side in (clean, run, other))
            before.append(without - metric(silent - written(head, own, corrupted)))
            after.append(with_answer - metric(answering - written(head, now, corrupted)))
        rise = torch.stack(after) - torch.stack(before)
        parts.append((whole - without, whole - with_answer, torch.stack(before), rise))
    return _Answers(*(torch.cat(column, -1) for column in zip(*parts, strict=True)))


def _metric(bed: PatchBed, stream: Float[Tensor, "pair answer d"], batch: Batch) -> Float[Tensor, "pair"]:
    """The task's metric of the stream at the answers; of a logit difference no other tokens' logits are made."""
    if batch.signs.shape[1] or bool((batch.wrong < 0).any()):
        return task_metric(bed.subject.read_out(stream), batch).double().cpu()
    right = torch.take_along_dim(batch.answer, batch.contrast[:, None], 1)[:, 0]
    tokens, places = torch.cat([right, batch.wrong]).unique(return_inverse=True)
    at = torch.take_along_dim(stream, batch.contrast[:, None, None], 1)[:, 0]
    said = bed.subject.read_out(at, tokens).float().gather(1, places.view(2, -1).T)
    return (said[:, 0] - said[:, 1]).double().cpu()


def _turned(
    clean: Float[Tensor, "rows pos part"], to: Float[Tensor, "rows pos part"], head: Head, turn: int
) -> Float[Tensor, "rows pos part"]:
    """The change from one to the other, as long as it is, under a random rotation or reflection."""
    generator = torch.Generator().manual_seed(1_000_003 * turn + 1009 * head[0] + head[1])
    drawn = torch.randn(clean.shape[-1], clean.shape[-1], generator=generator, dtype=torch.float64)
    factors = torch.linalg.qr(drawn)
    return clean + (to - clean) @ (factors.Q * factors.R.diagonal().sign()).to(clean)


def _by_head(bed: PatchBed, writers: Ablated) -> Float[Tensor, "rows layer pos head part"]:
    return writers.heads.unflatten(-1, (bed.graph.n_heads, -1))
