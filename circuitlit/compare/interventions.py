"""Ablation, transfer and scaling of the nodes that matter, beside matched random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.compare.effects import (
    PairBed,
    ablated_text,
    changed_logits,
    effects,
    gain_share,
    mean_over,
    model_text_kl,
    node_weights,
    normalised_loss,
    plain_logits,
    ranked_nodes,
    scaled,
    specificity,
    text_kl,
    without_edges,
    without_nodes,
)
from circuitlit.compare.intervention_figures import (
    Ablations,
    Cumulative,
    Dose,
    Enhancement,
    SetAblation,
    Transfer,
    Transferred,
)
from circuitlit.compare.transplant import Transplant
from circuitlit.compare.writes import Writers
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate, TestBed
from circuitlit.evaluate.matched import matched_edges, matched_nodes, mean_overlap
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import (
    LEAST_DRAWS,
    enough_draws,
    monotonicity,
    rank_p,
    slope,
    until_clear,
    with_holm,
)
from circuitlit.graph import INPUTS, Circuit
from circuitlit.graph.nodes import known_nodes
from circuitlit.heads.text import sample_passages
from circuitlit.model import Subject
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.tasks.pair import Batch

CLAIMS = 4  # of the chosen set: ablation, doses, its writes and its weights transferred


@dataclass(frozen=True, kw_only=True, repr=False)
class Interventions(Result):
    """What `intervene_on_nodes` found.

    Attributes:
        task, model, method: what the nodes were ranked on, in and by.
        ablated_by: what stood in for ablated nodes.
        seed: of random sets and text.
        n_pairs: test pairs.
        chosen: the set that is ablated, scaled and transferred.
        settings: sizes and levels.
        text: where the other text is from.
        full_metric: of the model as it is.
        ablation, enhancement, transfer: the three interventions; no transfer without a tuned model.
    """

    schema: ClassVar[str] = "interventions"
    file: ClassVar[str] = "intervene.json"

    task: str
    model: str
    method: str
    ablated_by: str
    seed: int
    n_pairs: int
    chosen: list[str]
    settings: dict[str, Any]
    text: str
    full_metric: Estimate
    ablation: Ablations
    enhancement: Enhancement
    transfer: Transfer | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a node or edge that was ablated alone."""
        for what, found in (("node", self.ablation.nodes), ("edge", self.ablation.edges)):
            for one in found:
                yield {
                    "what": what,
                    "name": one.name,
                    "kind": one.kind,
                    "drop": one.drop.value,
                    "kl": one.kl,
                    "q": one.q,
                }


@dataclass(frozen=True)
class _Case:
    """What all interventions work with."""

    bench: Workbench
    bed: TestBed
    circuit: Circuit
    chosen: list[str]
    kinds: Mapping[str, str]
    text: Int[Tensor, "passage pos"]
    writers: Writers
    others: dict[str, TestBed]
    control_pairs: int
    draws: int | None
    seed: int

    @property
    def subject(self) -> Subject:
        return self.bench.subject

    def sets(self) -> list[list[str]]:
        """Random sets like the chosen one, as many as the page's claims need."""
        return matched_nodes(self.subject.graph, self.chosen, self.draws or enough_draws(CLAIMS), self.seed)


@checks_arguments
def intervene_on_nodes(
    bench: Workbench,
    circuit: Circuit,
    *,
    tuned: Subject | None = None,
    nodes: Sequence[str] | None = None,
    size: int = 4,
    candidates: int | None = 20,
    edges: int = 20,
    steps: Sequence[int] = (1, 2, 4, 8, 16),
    doses: Sequence[float] = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    draws: int | None = None,
    pairs: int = 32,
    control_pairs: int = 16,
    other_tasks: Mapping[str, Workbench] | None = None,
    level: float = 0.05,
    kinds: Mapping[str, str] | None = None,
    text: Int[Tensor, "passage pos"] | None = None,
    text_source: str = "sampled from the model",
    seed: int = 0,
) -> Interventions:
    """Ablate, scale and transfer the nodes that carry most of a circuit.

    Args:
        bench: the model and its task's pairs; its ablation stands in for what is cut.
        circuit: ranks nodes and edges.
        tuned: nodes are transferred from it; None transfers none.
        nodes: the set, instead of the best `size` of the ranking.
        size: nodes of the set.
        candidates: nodes ablated one by one; None takes all.
        edges: edges cut one by one.
        steps: numbers of nodes ablated together, best first.
        doses: factors of the set's writes, 0 (zero ablation) and 1 (nothing changed) among them.
        draws: at most so many random sets; None takes as many as significance needs.
        pairs: test pairs.
        control_pairs: test pairs for random sets.
        other_tasks: the same model with other tasks' pairs, for specificity.
        level: false discovery rate.
        kinds: roles of components, for the table.
        text: passages for the collateral KL; None samples 16 of 48 tokens from the model.
        text_source: where they are from, in words.
        seed: of random sets and sampled text.

    Raises:
        UserError: unknown nodes, an input among them, doses without 0 and 1, pairs without wrong answers, or a
            compiled program.
    """
    subject, writers = bench.subject, Writers(bench.subject)
    if not {0.0, 1.0} <= {float(dose) for dose in doses}:
        raise UserError("doses must hold 0 (zero ablation) and 1 (nothing changed)")
    move = None if tuned is None else Transplant(subject, tuned)
    with phase("scores", "Ranking the nodes"):
        chosen = ranked_nodes(circuit)[:size] if nodes is None else known_nodes(subject.graph, nodes)
        if not chosen or {*chosen} & {*INPUTS}:
            raise UserError("nodes must name heads and MLPs, at least one; an input has no random control")
        text = sample_passages(subject, 16, 48, seed) if text is None else text
        beds = [_bed(one, pairs) for one in (bench, *(other_tasks or {}).values())]
        if not bool(beds[0].full.metric.isfinite().all()):
            task = bench.data.splits.name
            raise UserError(f"task {task} has pairs without wrong answers, so there is no metric to change")
        others = dict(zip(other_tasks or {}, beds[1:], strict=True))
        case = _Case(bench, beds[0], circuit, chosen, kinds or {}, text, writers, others, control_pairs, draws, seed)
    with phase("ablation", f"Ablating {' '.join(chosen)} and random nodes like them"):
        ablated = _ablated(case, candidates, edges, steps, level)
    with phase("enhancement", f"Scaling them by {len(doses)} doses"):
        enhancement = _enhanced(case, sorted(map(float, doses)))
    transfer = None
    if move is not None:
        with phase("transfer", "Transferring them from the tuned model"):
            transfer = _transferred(case, move)
    sizes = {"size": size, "candidates": candidates, "edges": edges, "steps": list(steps), "doses": list(doses)}
    found = Interventions(
        task=bench.data.splits.name,
        model=subject.name,
        method=circuit.scores.method,
        ablated_by=bench.references.kind,
        seed=seed,
        n_pairs=len(case.bed.full.kl),
        chosen=chosen,
        settings=sizes | {"draws": draws, "pairs": pairs, "control_pairs": control_pairs, "level": level},
        text=text_source,
        full_metric=mean_estimate(case.bed.full.metric, case.bed.full.group),
        ablation=ablated,
        enhancement=enhancement,
        transfer=transfer,
    )
    return with_holm(found)


def _bed(bench: Workbench, pairs: int) -> TestBed:
    return TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs))


def _ablated(case: _Case, candidates: int | None, n_edges: int, steps: Sequence[int], level: float) -> Ablations:
    """Nodes and edges one by one, the best ones together, and the chosen set, each beside random ones."""
    bed, graph = case.bed, case.subject.graph
    ranked, draws = ranked_nodes(case.circuit), case.draws or LEAST_DRAWS
    names = list(dict.fromkeys([*case.chosen, *ranked[:candidates]]))
    nodes = effects(bed.full, {n: bed.run(without_nodes(graph, [n])) for n in names}, case.kinds)
    shares = case.circuit.shares
    best = shares.argsort(descending=True, stable=True)[: min(n_edges, int((shares > 0).sum()))].tolist()
    edges = effects(bed.full, {graph.edge_name(e): bed.run(without_edges(graph, [e])) for e in best}, case.kinds)
    single = [matched_nodes(graph, [name], 1, seed)[0][0] for seed, name in zip(range(draws), cycle(names))]
    sparse = [matched_edges(graph, [edge], 1, seed)[0][0] for seed, edge in zip(range(draws), cycle(best))]
    return Ablations(
        nodes=nodes,
        random_node=_random(case, [without_nodes(graph, [node]) for node in single]),
        edges=edges,
        random_edge=_random(case, [without_edges(graph, [edge]) for edge in sparse]),
        cumulative=_cumulative(case, list(dict.fromkeys([*case.chosen, *ranked])), steps),
        set=_set_ablated(case),
        weights=node_weights(case.circuit),
        weight=case.circuit.scores.meaning,
        level=level,
    )


def _random(case: _Case, cuts: Sequence[Tensor]) -> Estimate:
    """Mean drop over random interventions, on the first pairs."""
    pairs = min(case.control_pairs, len(case.bed.full.kl))
    return mean_over(case.bed.full.head(pairs), [case.bed.run(cut, pairs) for cut in cuts])


def _cumulative(case: _Case, order: list[str], steps: Sequence[int]) -> list[Cumulative]:
    """The best 1, 2, 4 ... nodes ablated together, and random sets like each."""
    graph, bed, rows = case.subject.graph, case.bed, []
    for size in sorted({min(size, len(order)) for size in steps}):
        outcome = bed.run(without_nodes(graph, order[:size]))
        sets = matched_nodes(graph, order[:size], case.draws or LEAST_DRAWS, case.seed)
        drop = mean_estimate(bed.full.metric - outcome.metric, outcome.group)
        random = _random(case, [without_nodes(graph, members) for members in sets])
        overlap = mean_overlap(order[:size], sets)
        rows.append(Cumulative(size, order[size - 1], drop, float(outcome.kl.mean()), random, overlap))
    return rows


def _set_ablated(case: _Case) -> SetAblation:
    """The chosen nodes together: drop, collateral KL and specificity, beside random sets."""
    graph, bed, kind = case.subject.graph, case.bed, case.bench.references.kind
    cut = without_nodes(graph, case.chosen)
    outcome = bed.run(cut)
    pairs = min(case.control_pairs, len(bed.full.kl))
    own = float((bed.full.metric - outcome.metric)[:pairs].mean())
    tries = ((members, bed.run(without_nodes(graph, members), pairs)) for members in case.sets())
    ran = until_clear([own], tries, lambda one: [_drop(bed, one[1])])
    sets = [members for members, _ in ran]
    on_text = kind if kind in ("interchange", "zero") else "mean"

    def collateral(nodes: Sequence[str]) -> Tensor:
        return text_kl(case.subject, case.text, ablated_text(case.writers, case.text, nodes, on_text))

    return SetAblation(
        nodes=case.chosen,
        drop=mean_estimate(bed.full.metric - outcome.metric, outcome.group),
        random=mean_over(bed.full.head(pairs), [other for _, other in ran]),
        rank_p=rank_p(own, [_drop(bed, other) for _, other in ran]),
        draws=len(ran),
        overlap=mean_overlap(case.chosen, sets),
        text_ablated_by=on_text,
        collateral_kl=mean_estimate(collateral(case.chosen), None),
        random_collateral_kl=mean_of([float(collateral(s).mean()) for s in sets[:LEAST_DRAWS]]),
        **(_specific(case, cut, outcome, sets[:LEAST_DRAWS]) if case.others else {}),
    )


def _drop(bed: TestBed, other: Outcome) -> float:
    """Mean drop of the metric on the first pairs."""
    return float((bed.full.head(len(other.kl)).metric - other.metric).mean())


def _specific(case: _Case, cut: Tensor, outcome: Outcome, sets: list[list[str]]) -> dict[str, Any]:
    """How much more the own task is hurt than others, for `SetAblation`."""
    graph = case.subject.graph
    losses = [normalised_loss(bed, bed.run(cut), seed) for seed, bed in enumerate(case.others.values(), 1)]
    own, random = normalised_loss(case.bed, outcome), []
    for members in sets:
        other = without_nodes(graph, members)
        shares = [float(normalised_loss(bed, bed.run(other)).value) for bed in (case.bed, *case.others.values())]
        random.append(shares[0] - sum(shares[1:]) / len(case.others))
    return {
        "specificity": specificity(own, losses),
        "random_specificity": mean_of(random),
        "own_loss": float(own.value),
        "other_tasks": {name: float(loss.value) for name, loss in zip(case.others, losses, strict=True)},
    }


def _enhanced(case: _Case, doses: list[float]) -> Enhancement:
    """Dose and response of the chosen nodes and of random sets."""
    writers, batches = case.writers, case.bed.batches
    bed, small = PairBed(case.subject, batches), PairBed(case.subject, _first(batches, case.control_pairs))
    rows = []
    for dose in doses:
        outcome = bed.measure(scaled(writers, case.chosen, dose))
        kl = text_kl(case.subject, case.text, _dosed(case, dose))
        change = mean_estimate(outcome.metric - bed.full.metric, outcome.group)
        metric = mean_estimate(outcome.metric, outcome.group)
        rows.append(Dose(dose, metric, change, float(outcome.kl.mean()), mean_estimate(kl, None)))
    responses = [row.change.value or 0.0 for row in rows]
    own = slope(doses, responses)

    def dosed(members: Sequence[str]) -> list[float]:
        outcomes = (small.measure(scaled(writers, members, dose)) for dose in doses)
        return [float((outcome.metric - small.full.metric).mean()) for outcome in outcomes]

    random = until_clear([abs(own)], map(dosed, case.sets()), lambda values: [abs(slope(doses, values))])
    slopes = [slope(doses, values) for values in random]
    return Enhancement(
        nodes=case.chosen,
        doses=rows,
        slope=own,
        monotonicity=monotonicity(doses, responses),
        best_dose=max(rows, key=lambda row: row.metric.value or 0.0).dose,
        random_changes=random,
        random_slope=mean_of(slopes),
        random_monotonicity=mean_of([monotonicity(doses, values) for values in random]),
        rank_p=rank_p(abs(own), [abs(value) for value in slopes]),
    )


def _dosed(case: _Case, dose: float) -> Callable[[], Tensor]:
    return lambda: changed_logits(case.writers, case.text, case.chosen, lambda _node, own: own * dose)


def _first(batches: list[Batch], pairs: int) -> list[Batch]:
    """As many of the batches as hold the first pairs."""
    taken, seen = [], 0
    for batch in batches:
        if seen >= pairs:
            break
        taken.append(batch)
        seen += len(batch)
    return taken


def _transferred(case: _Case, move: Transplant) -> Transfer:
    """The chosen nodes from tuned to base, what they write and their weights, beside random sets."""
    bed = PairBed(case.subject, case.bed.batches)
    tuned = bed.measure(lambda batch: plain_logits(move.donor, batch))
    gap = mean_estimate(tuned.metric - bed.full.metric, tuned.group)

    def written(nodes: Sequence[str]) -> tuple[Outcome, Tensor]:
        outcome = bed.measure(lambda batch: move.logits(nodes, batch.clean, batch.positions))
        return outcome, text_kl(case.subject, case.text, lambda: move.logits(nodes, case.text, None))

    def weighed(nodes: Sequence[str]) -> tuple[Outcome, Tensor]:
        with move.weights(nodes) as copy:
            outcome = bed.measure(lambda batch: plain_logits(copy, batch))
            return outcome, model_text_kl(case.subject, copy, case.text)

    def beside(way: Callable[[Sequence[str]], tuple[Outcome, Tensor]]) -> Transferred:
        outcome, text = way(case.chosen)
        own = gain_share(bed.full, tuned, outcome)
        others = until_clear(
            [own.value], map(way, case.sets()), lambda one: [gain_share(bed.full, tuned, one[0]).value]
        )
        shares = [gain_share(bed.full, tuned, other).value for other, _ in others]
        known = [share for share in shares if share is not None]
        return Transferred(
            gain_share=own,
            random_gain_share=mean_of(known) if known else None,
            rank_p=rank_p(own.value, known) if own.value is not None else None,
            collateral_kl=mean_estimate(text, None),
            random_collateral_kl=mean_estimate(torch.stack([kl.mean() for _, kl in others]), None),
        )

    return Transfer(
        tuned=move.donor.origin,
        metric_gap=gap,
        gap_is_clear=gap.bounds is not None and gap.bounds[0] * gap.bounds[1] > 0,
        withheld=withheld(case.subject.graph, case.chosen),
        activations=beside(written),
        weights=beside(weighed),
    )
