"""Attributions that a circuit is compared with, how their scores are ranked, and what was trained beside the cut."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import mean_estimate, paired_difference
from circuitlit.graph import Circuit, EdgeScores, reachable_edges, top_k


@dataclass(frozen=True)
class Baseline:
    """An attribution that a circuit is compared with.

    Attributes:
        scores: of all edges, as they are ranked.
        seconds: that scoring took.
        val_kl: KL of its circuit on validation pairs, nats; None where it was not needed.
    """

    scores: EdgeScores
    seconds: float
    val_kl: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        label = f"{self.scores.method}, {self.scores.ranking}"
        return {"label": label, "seconds": self.seconds, "val_kl": self.val_kl}


def baselines(bench: Workbench, start: Baseline, methods: Sequence[Method]) -> list[Baseline]:
    """The start scores, and those of some methods, each with what it cost."""
    made = [start]
    for method in methods:
        begun = time.perf_counter()
        scores = bench.score(method)
        bench.cut(scores)  # a method that rejected too many edges is refused here, not after training
        made.append(Baseline(scores, time.perf_counter() - begun))
    return made


def best_attribution(bench: Workbench, tried: Sequence[Baseline], bed: TestBed | None) -> list[Baseline]:
    """Every ranking of some attributions, by magnitude and by sign, the one of lowest KL on validation pairs first."""
    if bed is None:
        return list(tried)
    ranked = [
        replace(one, scores=scores, val_kl=float(bed.run(bench.cut(scores).kept).kl.mean()))
        for one in tried
        for scores in rankings(one.scores)
    ]
    return sorted(ranked, key=lambda one: one.val_kl or 0.0)


def validation(bench: Workbench, pairs: int) -> TestBed | None:
    """The first validation pairs; None where the task has none."""
    rows = bench.data.val.spread(pairs)
    if not rows:
        return None
    return TestBed.build(bench.model, bench.fresh_references(), [bench.data.val.collate(rows)])


def against_cut(masks: Float[Tensor, "copies edge"], circuit: Circuit, bed: TestBed | None) -> dict[str, Any]:
    """What was trained beside what is cut from it: their KL on validation pairs, and the masks that differ."""
    facts: dict[str, Any] = {
        "n_between": int(((masks > 0) & (masks < 1)).sum()),
        "n_differ": int(((masks >= 0.5).cpu() != circuit.kept).sum()),
    }
    if bed is None:
        return {"gates": facts}
    cut = bed.run(circuit.kept)
    trained = bed.run(masks) if any(facts.values()) else cut
    facts |= {"n_pairs": len(cut.kl), "cut_minus_gates_kl": paired_difference(cut.kl, trained.kl, cut.group).to_dict()}
    ends = {"kl": trained, "cut_kl": cut}
    return {"gates": facts | {key: mean_estimate(end.kl, end.group).to_dict() for key, end in ends.items()}}


def rankings(scores: EdgeScores) -> list[EdgeScores]:
    """The scores ranked by magnitude and by sign; gates, shares and what a method rejected have one ranking."""
    if scores.kind != "effect" or scores.limit is not None:
        return [scores]
    return [replace(scores, ranks_by_magnitude=magnitude) for magnitude in (True, False)]


def signed_or_absolute(bed: TestBed, bench: Workbench, scores: EdgeScores) -> EdgeScores:
    """The ranking of some scores whose circuit has the lower KL on the pairs of `bed`."""
    return min(rankings(scores), key=lambda r: float(bed.run(bench.cut(r).kept).kl.mean()))


def cut_to_reachable(scores: EdgeScores, reachable: int) -> Bool[Tensor, "copies edge"]:
    """The smallest top-k circuit of some scores that has at least `reachable` reachable edges."""
    order = scores.order
    low, high = 1, scores.size
    while low < high:
        middle = (low + high) // 2
        if int(reachable_edges(scores.graph, top_k(order, middle)).sum()) >= reachable:
            high = middle
        else:
            low = middle + 1
    return top_k(order, low)
