"""A circuit on held-out pairs beside everything that it is compared with, and whether it clears the bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.agreement import Agreements
from circuitlit.evaluate.baseline import Baseline, cut_to_reachable
from circuitlit.evaluate.controls import random_circuit, shuffled_circuits
from circuitlit.evaluate.experts import expert_shares
from circuitlit.evaluate.found import (
    FAILED,
    OK,
    SMOKE,
    UNMEASURABLE,
    Compared,
    FoundCircuit,
    Measured,
    Subset,
)
from circuitlit.evaluate.ground_truth import edge_auc
from circuitlit.evaluate.live import Live
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.published import measure_published, published_rows
from circuitlit.evaluate.statistics import paired_difference
from circuitlit.evaluate.summary import Summary, summarise
from circuitlit.evaluate.testing import LEVEL, enough_draws, holm, rank_p
from circuitlit.evaluate.trust.chance import chance_rows, no_other
from circuitlit.evaluate.trust.preserved import preserved_rows
from circuitlit.graph import Circuit, EdgeScores, reachable_edges
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.progress import told

EXPERT_BATCHES = 2  # test batches on which experts' shares are measured


@dataclass(frozen=True)
class Bars:
    """What a circuit is compared with, and what it has to clear.

    Attributes:
        controls: random circuits, and as many shuffles; fewer than 40 cannot be significant, two claims being made.
        control_pairs: test pairs that they run on, at least one of every sentence.
        probe_pairs: validation pairs that choose the attribution.
        max_kl_share: a circuit with more than this share of the corrupted run's KL has FAILED.
        least_pairs: fewer test pairs than these are not judged by, unless they are all inputs there are.
        smoke: True says that nothing is concluded.
        published_pairs: test pairs for the task's published measures; 0 leaves them out; None: see `measure_published`.
    """

    controls: int = 40
    control_pairs: int = 8
    probe_pairs: int = 32
    max_kl_share: float = 0.5
    least_pairs: int = 10
    smoke: bool = False
    published_pairs: int | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing could be judged by.

        Raises:
            UserError: no control, or a share that is no number, which no KL would exceed.
        """
        if self.controls < 1 or math.isnan(self.max_kl_share):
            said = f"controls={self.controls} and max_kl_share={self.max_kl_share}"
            raise UserError(f"bars: {said}; take at least one control and a share that is a number")


def held_out(bench: Workbench, split: str = "test") -> TestBed:
    """The pairs of a held-out split, so ordered that the first few are of as many sentences as possible."""
    pairs = getattr(bench.data, split)
    return TestBed.of(bench, pairs, pairs.spread())


def evaluated_pairs(bench: Workbench, bars: Bars, tried: int) -> int:
    """Pairs that circuits are run on by `best_attribution` and `measure_circuit`, beside `tried` attributions."""
    data = bench.data
    baselines = (2 * len(data.test) + len(data.new_words)) * bool(tried)
    probes = 2 * tried * min(bars.probe_pairs, len(data.val))
    controls = 2 * bars.controls * min(max(bars.control_pairs, data.test.n_groups), len(data.test))
    published = (2 + bool(tried)) * published_rows(bench, bars.published_pairs)
    return len(data.test) + len(data.new_words) + baselines + probes + controls + published


def measure_circuit(
    bench: Workbench,
    circuit: Circuit,
    tried: Sequence[Baseline] = (),
    bed: TestBed | None = None,
    bars: Bars | None = None,
    seed: int = 0,
) -> FoundCircuit:
    """Run everything on the test split, and circuit and baseline on the one with new words.

    Args:
        bench: subject, pairs and masked model.
        circuit: what was found.
        tried: attributions, best first, if the circuit is not itself of one: the first one's circuits of equal size are
            the baseline.
        bed: of `held_out`, if it is there already.
        bars: what it is compared with, and has to clear.
        seed: that it was found with.
    """
    bars, bed = bars or Bars(), bed or held_out(bench)
    found = bed.run(circuit.kept)
    best = tried[0].scores if tried else None
    equal = None if best is None else bench.cut(best)
    result = FoundCircuit(
        status=OK,
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        ablation=bench.references.kind,
        seed=seed,
        n_edges_total=circuit.kept.numel(),
        n_edges=circuit.n_edges,
        n_edges_reachable=circuit.n_reachable,
        sparsity=circuit.sparsity,
        **_compared(bed, found, equal),
        attribution_reachable=None if best is None else _same_reachable(bed, circuit, best),
        **measure_controls(bench, bed, circuit, found, bars),
        attributions_tried=[one.to_dict() for one in tried],
        new_words=_new_words(bench, circuit, equal),
        **_against_truth(bench.subject, circuit),
        experts=expert_shares(bench.subject, bed.batches[:EXPERT_BATCHES], circuit),
        published=measure_published(bench, circuit, equal, bars.published_pairs),
    )
    status, reason = verdict(result, bars, bench.data.splits.exhaustive)
    assert result.subset and result.random and result.shuffled
    rows = preserved_rows(found, bed.full, bed.corrupted)
    rows += chance_rows(result.subset, {"random": result.random, "shuffled": result.shuffled})
    card = {row.name: row for row in rows}
    return replace(result, status=status, reason=reason, trust=card).bind(Live(circuit, bench))


def _compared(bed: TestBed, found: Outcome, equal: Circuit | None) -> dict[str, Any]:
    """The circuit on some held-out pairs, with full model, corrupted run and the attribution's circuit of its size."""
    sentences = len(found.group.unique())
    few = "with a single sentence nothing can be said of others" if sentences < 2 else None
    ends = bed.full, bed.corrupted
    compared = {
        "n_pairs": len(found.kl),
        "sentences": {"n": sentences, "reason": few},
        **_metrics(summarise([found], *ends)),
        "agreement": Agreements.of(bed.full, found),
        "full": _entry([bed.full], *ends, n_edges=bed.model.graph.n_edges),
        "corrupted": _entry([bed.corrupted], *ends, n_edges=0),
    }
    if equal is None:
        return compared
    theirs = bed.run(equal.kept)
    more = {"agreement": Agreements.of(bed.full, theirs)}
    more |= {"n_edges": equal.n_edges, "n_edges_reachable": equal.n_reachable}
    label = f"{equal.scores.method}, {equal.scores.ranking}"
    return compared | {
        "attribution": _entry([theirs], *ends, label=label, **more),
        "attribution_minus_circuit_kl": paired_difference(theirs.kl, found.kl, found.group),
    }


def _same_reachable(bed: TestBed, circuit: Circuit, best: EdgeScores) -> Measured:
    """The attribution's circuit with as many reachable edges."""
    kept = cut_to_reachable(best, circuit.n_reachable)
    sizes = {"n_edges": int(kept.sum()), "n_edges_reachable": int(reachable_edges(best.graph, kept).sum())}
    return _entry([bed.run(kept)], bed.full, bed.corrupted, **sizes)


def _new_words(bench: Workbench, circuit: Circuit, equal: Circuit | None) -> Compared:
    """The same comparison on sentences whose words, too, occur nowhere in training."""
    if not len(bench.data.new_words):
        return Compared(n_pairs=0, reason=f"task {bench.data.splits.name} has no pairs with new words")
    bed = held_out(bench, "new_words")
    return Compared(**_compared(bed, bed.run(circuit.kept), equal))


def _against_truth(subject: Subject, circuit: Circuit) -> dict[str, Any]:
    """How the circuit compares with the edges that the model is known to use, where they are known."""
    true = subject.true_edges
    if true is None:
        return {}
    found = circuit.kept.any(0)
    return {
        "edge_roc_auc": edge_auc(circuit.scores, true),
        "true_edges": int(true.sum()),
        "true_edges_found": int((found & true).sum()),
        "false_edges_found": int((found & ~true).sum()),
    }


def _entry(outcomes: list[Outcome], full: Outcome, corrupted: Outcome, **more: Any) -> Measured:
    return Measured(**_metrics(summarise(outcomes, full, corrupted)), **more)


def _metrics(summary: Summary) -> dict[str, Any]:
    """The fields of `Measured` that a summary has."""
    own = {field.name: getattr(summary, field.name) for field in fields(summary)}
    return own | {"per_pair": vars(summary.per_pair)}


def measure_controls(bench: Workbench, bed: TestBed, circuit: Circuit, found: Outcome, bars: Bars) -> dict[str, Any]:
    """Random circuits of the same size, and shuffles with the same degrees, on pairs of every sentence.

    `subset` holds circuit, full model and corrupted run on the same pairs. `p` of a control is the share of its
    circuits with a KL at most the circuit's, the circuit itself counted; `p_holm` is corrected for both controls. A
    control so many of whose circuits are the circuit itself that no other KL could make it significant has neither:
    there is too little to compare it with.
    """
    number, graph = bars.controls, bench.subject.graph
    pairs = min(max(bars.control_pairs, len(found.group.unique())), len(found.kl))
    own, full, corrupted = (outcome.head(pairs) for outcome in (found, bed.full, bed.corrupted))
    kinds = {
        "random": [random_circuit(graph, circuit.n_edges, seed, len(circuit.kept)) for seed in range(number)],
        "shuffled": list(shuffled_circuits(graph, circuit.kept, number, 0)),
    }
    outcomes = {
        kind: [bed.run(kept, pairs) for kept in told(circuits, f"{kind} circuits", number)]
        for kind, circuits in kinds.items()
    }
    closeness = -float(own.kl.mean())
    alike = {kind: sum(torch.equal(kept, circuit.kept) for kept in own) for kind, own in kinds.items()}
    differ = [kind for kind, same in alike.items() if not same or (1 + same) / (1 + number) < LEVEL]
    p = [rank_p(closeness, [-float(other.kl.mean()) for other in outcomes[kind]]) for kind in differ]
    claims = {kind: {"p": one, "p_holm": both} for kind, one, both in zip(differ, p, holm(p), strict=True)}
    facts = {"n_edges": circuit.n_edges, "n_circuits": number, "n_pairs": pairs}
    rows = {
        kind: _entry(others, bed.full, bed.corrupted, n_alike=alike[kind] or None, **facts, **claims.get(kind, {}))
        for kind, others in outcomes.items()
    }
    metrics = _metrics(summarise([own], full, corrupted))
    first, last = (_entry([end], full, corrupted) for end in (full, corrupted))
    subset = Subset(n_pairs=pairs, n_edges=circuit.n_edges, full=first, corrupted=last, **metrics)
    return rows | {"subset": subset}


def verdict(result: FoundCircuit, bars: Bars, exhaustive: bool = False) -> tuple[str, str | None]:
    """Status of a result and why it is not OK: its KL against the corrupted run's, and against the controls'.

    Args:
        result: of `measure_circuit`.
        bars: that it has to clear.
        exhaustive: True where the pairs are all inputs there are, so that few are enough.
    """
    if bars.smoke:
        return SMOKE, "a run this short shows that everything works and says nothing about the model"
    assert result.n_pairs is not None
    if result.n_pairs < bars.least_pairs and not exhaustive:
        return (
            UNMEASURABLE,
            f"{result.n_pairs} test pairs are too few to judge by; take at least {bars.least_pairs}",
        )
    kl, worst = (one and one.kl and one.kl.value for one in (result, result.corrupted))
    assert kl is not None and worst is not None
    allowed = bars.max_kl_share * worst
    if kl > allowed:
        return (
            FAILED,
            f"its KL of {kl:.3f} nats exceeds {allowed:.3f}, {bars.max_kl_share:g} of the corrupted run's",
        )
    unsure: list[str] = []  # said only where no control fails it: more draws would not help then
    for control in ("random", "shuffled"):
        row: Measured = getattr(result, control)
        assert row.n_circuits is not None
        if row.p is None or row.p_holm is None:
            few = f"{row.n_alike} of {row.n_circuits} {control} circuits are this one"
            none = row.n_alike in (None, row.n_circuits)
            unsure.append(no_other(control, row.n_circuits) + "; there is nothing to compare it with" if none else few)
        elif row.p_holm >= LEVEL and row.p <= 1 / (1 + row.n_circuits):
            enough = enough_draws(2)
            unsure.append(f"{row.n_circuits} {control} circuits are too few for p < {LEVEL}; take {enough}")
        elif row.p_holm >= LEVEL:
            return FAILED, f"its KL is not below that of {control} circuits beyond chance (p = {row.p_holm:.2g})"
    return (UNMEASURABLE, unsure[0]) if unsure else (OK, None)
