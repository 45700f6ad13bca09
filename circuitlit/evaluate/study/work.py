"""What the cells of a study do: score or learn, cut at every sparsity, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.baseline import signed_or_absolute, validation
from circuitlit.evaluate.controls import random_circuit
from circuitlit.evaluate.curves import size_curve
from circuitlit.evaluate.find import ask
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.published import PanelBed
from circuitlit.evaluate.similarity import Spread, noise_floor
from circuitlit.evaluate.study.cells import (
    Areas,
    ByPair,
    BySize,
    Circuits,
    Cut,
    StudySettings,
    TaskEnds,
    by_pair,
    lists,
)
from circuitlit.evaluate.verdict import held_out
from circuitlit.graph import Circuit, EdgeScores

BETWEEN = (0.003, 0.0075, 0.015, 0.03, 0.04, 0.07)  # shares of the edges kept, beside MIB's sizes
BySparsity = Mapping[float, Workbench]
Scored = tuple[EdgeScores, float]  # scores and the seconds that they took


@dataclass
class StudyTask:
    """One task with all that its cells share, built once.

    Attributes:
        bench: subject, pairs and masked model.
        test: the pairs that are reported on.
        val: the pairs that rankings are chosen by; None where the task has none.
        panel: the pairs of its published measures; None without any.
        known: scores of attributions that are done, by their settings.
    """

    bench: Workbench
    test: TestBed
    val: TestBed | None
    panel: PanelBed | None = None
    known: dict[Hashable, Scored] = field(default_factory=dict)

    @classmethod
    def build(cls, bench: Workbench, probe_pairs: int, published_pairs: int | None = 0) -> StudyTask:
        """Run full model and ablated one on the held-out pairs and on the first validation pairs."""
        return cls(bench, held_out(bench), validation(bench, probe_pairs), PanelBed.build(bench, published_pairs))

    def attribution(self, method: Method, bench: Workbench, key: Hashable) -> Scored:
        """Scores of a method, made once for each key."""
        if key not in self.known:
            started = time.perf_counter()
            scores = bench.score(method)
            self.known[key] = scores, time.perf_counter() - started
        return self.known[key]


def ends(task: StudyTask, min_accuracy: float) -> TaskEnds:
    """The full model and the corrupted run, pair by pair.

    Raises:
        UserError: the model does not do the task, so that no circuit is sought.
    """
    behaviour, reason = ask(task.bench, min_accuracy, aloud=False)
    if reason:
        raise UserError(reason)
    return TaskEnds(
        behaviour=behaviour.to_dict(),
        n_pairs=len(task.test.full.kl),
        n_train=len(task.bench.data.train),
        n_edges_total=task.bench.layout.n_edges,
        full=by_pair(task.test.full),
        corrupted=by_pair(task.test.corrupted),
        published=_published_ends(task.panel) if task.panel else None,
    )


def _published_ends(panel: PanelBed) -> dict[str, ByPair]:
    ends = {"full": panel.full, "corrupted": panel.corrupted}
    measured = {side: lists(panel.measured(values)) for side, values in ends.items()}
    return measured | {"groups": {"group": panel.groups.tolist()}}


def random_circuits(task: StudyTask, benches: BySparsity, settings: StudySettings) -> Circuits:
    """Random circuits at every sparsity, on some pairs."""
    rows, started = [], time.perf_counter()
    for sparsity, bench in benches.items():
        graph, copies = bench.subject.graph, bench.layout.copies
        for seed in range(settings.controls):
            outcome = task.test.run(random_circuit(graph, bench.count, seed, copies), settings.control_pairs)
            once = task.panel and seed == 0  # each of its batches has a circuit of its own
            found = lists(task.panel.random(bench.count, copies)) if once else None  # type: ignore[union-attr]
            rows.append(Cut(sparsity=sparsity, n_edges=bench.count, by_pair=by_pair(outcome), published=found))
    return Circuits(rows=rows, seconds=time.perf_counter() - started)


def attributed(
    task: StudyTask,
    method: Method,
    benches: BySparsity,
    folder: Path,
    settings: StudySettings,
    key: str,
    facts: dict[str, object] | None = None,
) -> Circuits:
    """One method's scores, cut at every sparsity, with the noise floor of its circuits.

    Args:
        task: what it is measured on.
        method: how edges are scored.
        benches: of every sparsity.
        folder: where the circuit of the first sparsity is saved.
        settings: of the study.
        key: of the scores among those of the task.
        facts: provenance of the circuit.
    """
    first = next(iter(benches.values()))
    scores, seconds = task.attribution(method, first, key)
    resampled = _resampled(method, first, settings.resamples)
    rows = []
    for sparsity in _sparsities(method, benches, scores):
        bench = benches.get(sparsity, first)
        if scores.limit is not None:
            bench = replace(bench, count=scores.limit)
        ranked = signed_or_absolute(task.val, bench, scores) if task.val else scores
        row = _row(task, bench, ranked, sparsity)
        if resampled:
            same = [replace(each, ranks_by_magnitude=ranked.ranks_by_magnitude) for each in resampled]
            row = replace(row, noise=Spread.of([bench.cut(each).kept for each in same]))
        rows.append(row)
    size = min(first.count, scores.limit or first.count)
    replace(first, count=size).cut(scores, facts).save(folder)
    measured = _curves(task, scores, rows, first.select, settings.curve_pairs)
    return Circuits(rows=rows, seconds=seconds, details=scores.details, **measured)


def learned(
    task: StudyTask,
    train: Callable[[], Scored],
    benches: BySparsity,
    folder: Path,
    settings: StudySettings,
    facts: dict[str, object] | None = None,
) -> Circuits:
    """One mask run: its circuit and its ranking of all edges; arguments as of `attributed`.

    Args:
        train: trains masks; gives their scores and the seconds that this took.
    """
    scores, seconds = train()
    rows = [_row(task, bench, scores, sparsity) for sparsity, bench in benches.items()]
    first = next(iter(benches.values()))
    count = scores.details.get("published_count")  # of a recipe that binarises its masks in its own way
    if isinstance(count, int) and count and all(count != row.n_edges for row in rows):
        rows.append(_row(task, replace(first, count=count), scores, 1 - count / scores.size))
    first.cut(scores, facts).save(folder)
    return Circuits(rows=rows, seconds=seconds, **_curves(task, scores, rows, first.select, settings.curve_pairs))


def _sparsities(method: Method, benches: BySparsity, scores: EdgeScores) -> list[float]:
    """The study's sparsities; for a method that keeps a number of edges of its own, that alone.

    Its circuit stands with the study's sparsity for which it was searched, where it was.
    """
    if scores.limit is None:
        return list(benches)
    asked = getattr(method.score, "keywords", {}).get("count")
    return [at for at, bench in benches.items() if bench.count == asked] or [1 - scores.limit / scores.size]


def _row(task: StudyTask, bench: Workbench, scores: EdgeScores, sparsity: float) -> Cut:
    circuit = bench.cut(scores)
    return Cut(
        sparsity=sparsity,
        n_edges=circuit.n_edges,
        n_edges_reachable=circuit.n_reachable,
        ranking=scores.ranking,
        select=bench.select,
        val_kl=float(task.val.run(circuit.kept).kl.mean()) if task.val else None,
        by_pair=by_pair(task.test.run(circuit.kept)),
        published=lists(task.panel.of(circuit)) if task.panel else None,
    )


def _resampled(method: Method, bench: Workbench, resamples: int) -> list[EdgeScores]:
    """The method's scores on bootstrap samples of its training pairs."""
    if resamples < 2:
        return []
    _, circuits = noise_floor(Resampler(bench, method), bench.cut, len(bench.data.train), resamples)
    return [circuit.scores for circuit in circuits]


def _curves(task: StudyTask, scores: EdgeScores, rows: list[Cut], select: Any, pairs: int) -> dict[str, Any]:
    """Areas over MIB's sizes, and KL at those and more sizes, on the first test pairs and on the validation pairs.

    A method that keeps a number of edges of its own is left out: at other sizes it has no circuit.
    """
    if not pairs or scores.limit is not None:
        return {}
    ranked = replace(scores, ranks_by_magnitude=rows[0].ranking == "absolute")
    curve = size_curve(task.test, ranked, select=select, pairs=pairs)
    found = {n: point.kl.value for n, point in zip(curve.n_edges, curve.points, strict=True) if n}
    for row in rows:
        kls = row.by_pair["kl"][:pairs]
        found[row.n_edges] = sum(kls) / len(kls)  # type: ignore[arg-type]

    def kl_at(bed: TestBed, count: int, pairs: int | None) -> float:
        return float(bed.run(Circuit.cut(ranked, count, select=select).kept, pairs).kl.mean())

    for count in {int(share * scores.size) for share in BETWEEN} - set(found) - {0}:
        found[count] = kl_at(task.test, count, pairs)
    chosen_by: BySize = [(count, kl_at(task.val, count, None)) for count in sorted(found)] if task.val else []
    areas = {name: getattr(curve, name) for name in ("ranking", "cpr", "cmd", "cpr_anchored", "cmd_anchored")}
    return {"curve": Areas(**areas), "kl_by_size": sorted(found.items()), "val_kl_by_size": chosen_by}
