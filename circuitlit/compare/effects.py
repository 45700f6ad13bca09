"""What an intervention does: to the task's metric, to other tasks, and to other text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.compare.writes import Change, Writers
from circuitlit.evaluate import Estimate, TestBed
from circuitlit.evaluate.statistics import Statistic, combined, mean_estimate, ratio
from circuitlit.evaluate.testing import benjamini_hochberg, paired_p
from circuitlit.finetune import BehaviourChange, behaviour_change
from circuitlit.graph import INPUTS, Circuit, Graph
from circuitlit.graph.nodes import place_of
from circuitlit.graph.select import edges_from
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.tasks.pair import Batch

LogitsOf = Callable[[Batch], Float[Tensor, "batch answer vocab"]]


class PairBed:
    """Pairs on which one model's answers are compared with changed ones.

    Args:
        subject: the model, as it is.
        batches: its pairs.

    Attributes:
        batches: on the subject's device.
        full: its own outcome (KL 0 by definition).
    """

    def __init__(self, subject: Subject, batches: Iterable[Batch]) -> None:
        self.subject = subject
        self.batches = [batch.to(subject.device) for batch in batches]
        with torch.no_grad():
            self._teacher = [plain_logits(subject, batch).float().log_softmax(-1) for batch in self.batches]
        self.full = self.measure(lambda batch: plain_logits(subject, batch))

    @torch.no_grad()
    def measure(self, logits_of: LogitsOf) -> Outcome:
        """Outcome of changed logits; `kl` is KL(the model || changed)."""
        return Outcome.join(
            [Outcome.of(logits_of(b), teacher, b) for b, teacher in zip(self.batches, self._teacher, strict=True)]
        )


def answers_changed(bed: PairBed, tuned: Subject) -> BehaviourChange:
    """A tuned model's answers beside those of the bed's model."""
    return behaviour_change(bed.full, bed.measure(lambda batch: plain_logits(tuned, batch)))


def plain_logits(subject: Subject, batch: Batch) -> Float[Tensor, "batch answer vocab"]:
    """Stock logits on the clean prompts."""
    return subject.logits(batch.clean, batch.positions)


def without_nodes(graph: Graph, nodes: Collection[str]) -> Bool[Tensor, "copies edge"]:
    """All edges but those out of some nodes."""
    return ~edges_from(graph, nodes)[None]


def without_edges(graph: Graph, edges: Collection[int]) -> Bool[Tensor, "copies edge"]:
    """All edges but some."""
    kept = torch.ones(1, graph.n_edges, dtype=torch.bool)
    kept[0, list(edges)] = False
    return kept


def node_weights(circuit: Circuit) -> dict[str, float]:
    """Weight of every node but the input: of the circuit's reachable edges out of it, summed over token roles.

    For effects that is their sum without signs, in their unit; for gates nearly the number of edges.
    """
    graph = circuit.graph
    return dict(zip(graph.nodes, circuit.writer_weights[graph.inputs :].tolist(), strict=True))


def ranked_nodes(circuit: Circuit) -> list[str]:
    """Nodes with the largest weights first; those that are not in the circuit, which weigh 0, last."""
    of = node_weights(circuit)
    return sorted(of, key=lambda node: -of[node])


@dataclass(frozen=True)
class Effect:
    """What one intervention does to the task.

    Attributes:
        name: node or edge.
        kind: role of the component, or "unclassified".
        layer: of the node, or of the edge's writer; None for the input.
        drop: the full model's metric minus that under the intervention; positive is damage.
        criticality: mean drop over its standard deviation over pairs; None where that is 0.
        kl: KL(full || it), nats.
        p, q: two-sided paired test of no drop, and its value adjusted for all effects of the list.
    """

    name: str
    kind: str
    layer: int | None
    drop: Estimate
    criticality: float | None
    kl: float
    p: float
    q: float


def effects(full: Outcome, found: dict[str, Outcome], kinds: Mapping[str, str]) -> list[Effect]:
    """Effects of several interventions on the same pairs, largest drop first, corrected for their number."""
    drops = {name: (full.metric - outcome.metric).double() for name, outcome in found.items()}
    p = {name: paired_p(drop, full.group) for name, drop in drops.items()}
    q = dict(zip(p, benjamini_hochberg(list(p.values())), strict=True))
    made = []
    for name, drop in drops.items():
        writer, spread = name.split("->")[0], float(drop.std()) if len(drop) > 1 else 0.0
        layer = None if writer in INPUTS else place_of(writer)[0]
        made.append(
            Effect(
                name,
                kinds.get(writer, "unclassified"),
                layer,
                mean_estimate(drop, full.group),
                float(drop.mean()) / spread if spread else None,
                float(found[name].kl.mean()),
                p[name],
                q[name],
            )
        )
    return sorted(made, key=lambda effect: -(effect.drop.value or 0.0))


def mean_over(full: Outcome, found: Sequence[Outcome]) -> Estimate:
    """Mean drop of several random interventions; pairs and interventions are both resampled."""
    drops = torch.stack([full.metric - outcome.metric for outcome in found]).double()
    return mean_estimate(drops, full.group)


def normalised_loss(bed: TestBed, outcome: Outcome, seed: int = 0) -> Statistic:
    """Share of the task's effect that is lost: 0 is the full model, 1 the corrupted run."""
    full, own, low = (o.metric.double() for o in (bed.full, outcome, bed.corrupted))
    return ratio(full - own, full - low, outcome.group, seed)


def specificity(own: Statistic, others: Sequence[Statistic]) -> Estimate:
    """Own task's loss minus the other tasks' mean loss, in shares of each task's effect.

    1 says that only the own task is hurt, 0 that all are alike, below 0 that the others are hurt more.

    Args:
        own: of `normalised_loss`, with a seed of its own for each task.
        others: of the other tasks.

    Source: arXiv 2605.08348.
    """
    return combined([(1.0, own), *((-1 / len(others), other) for other in others)]).estimate()


def gain_share(base: Outcome, tuned: Outcome, moved: Outcome) -> Estimate:
    """G = (m(base with S) - m(base)) / (m(tuned) - m(base)): 0 is the base, 1 the tuned model."""
    low, high, own = (o.metric.double() for o in (base, tuned, moved))
    return ratio(own - low, high - low, base.group).estimate()


@torch.no_grad()
def text_kl(
    subject: Subject, ids: Int[Tensor, "passage pos"], changed: Callable[[], Tensor]
) -> Float[Tensor, "passage"]:
    """KL(the model || changed) on passages, mean over their tokens, nats; `changed` gives the changed logits."""
    own = subject.unembed(subject.hidden(ids)).float().log_softmax(-1)
    other = changed().float().log_softmax(-1)
    return (own.exp() * (own - other)).sum(-1).mean(1).cpu()


def model_text_kl(base: Subject, tuned: Subject, ids: Int[Tensor, "passage pos"]) -> Float[Tensor, "passage"]:
    """KL(base || tuned) on passages, as `text_kl`."""
    return text_kl(base, ids, lambda: tuned.unembed(tuned.hidden(ids)))


def ablated_text(
    writers: Writers, ids: Int[Tensor, "passage pos"], nodes: Collection[str], kind: str
) -> Callable[[], Tensor]:
    """Logits on passages with nodes ablated: as on the next passage (interchange), their mean there, or nothing."""
    written = writers.record(ids)

    def change(node: str, own: Tensor) -> Tensor:
        if kind == "zero":
            return torch.zeros_like(own)
        theirs = written(node)
        theirs = theirs.roll(1, 0) if kind == "interchange" else theirs.mean((0, 1)).expand_as(theirs)
        return theirs.reshape(own.shape)

    return lambda: changed_logits(writers, ids, nodes, change)


def changed_logits(writers: Writers, ids: Int[Tensor, "batch pos"], nodes: Collection[str], change: Change) -> Tensor:
    """Logits at all positions with some nodes' writes changed."""
    with writers.changed(nodes, change):
        hidden = writers.subject.hidden(ids)
    return writers.subject.unembed(hidden)


def scaled(writers: Writers, nodes: Collection[str], dose: float) -> LogitsOf:
    """Logits on pairs with some nodes' writes times a dose: 1 changes nothing, 0 is zero ablation."""

    def logits_of(batch: Batch) -> Tensor:
        with writers.changed(nodes, lambda _node, own: own * dose):
            return plain_logits(writers.subject, batch)

    return logits_of
