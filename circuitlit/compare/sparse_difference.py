"""Two models' circuits and the few edges by which they differ, learned at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from circuitlit.arguments import checks_arguments
from circuitlit.compare.weights import check_same_graph, check_same_tokens
from circuitlit.discover import Schedule, initial_log_alpha
from circuitlit.discover.fit import Curves, Fit, fit
from circuitlit.discover.method import Method
from circuitlit.discover.sparse_difference import DifferenceLearner, SparseDifference
from circuitlit.discover.start import How
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate, TestBed, summarise
from circuitlit.evaluate.overlap import shared_by_pairs
from circuitlit.evaluate.overlap_figures import SharedFigures
from circuitlit.evaluate.testing import with_holm
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.graph.select import edge_budget
from circuitlit.objective import Objective, kl_divergence
from circuitlit.progress import phase
from circuitlit.result import Result

CURVES = ("loss", "base", "tuned", "open")
SCHEDULE = Schedule(150, lr=0.3, start_sparsity=0.9, warmup=0.5, harden=0.5, final_noise=0.1, hard=0.3)


@dataclass(frozen=True, kw_only=True, repr=False)
class LearnedDifference(Result):
    """What `find_difference` found.

    Attributes:
        task: the pairs' name.
        base, tuned: names and provenance of the models.
        penalty: nats that an edge in the difference mask costs.
        seed: of the noise.
        n_edges_total, n_edges: of the graph and of each circuit.
        n_different: edges in the difference mask.
        different: change of each of these edges' log-alpha from base to tuned, largest first.
        base_model, tuned_model: KL(full model || circuit) of each model under both circuits, nats.
        edges_in_both: edges that both circuits keep.
        shared: what the circuits share beside chance.
        history: losses of both models and expected number of open difference gates, by step.
    """

    schema: ClassVar[str] = "difference"
    file: ClassVar[str] = "difference.json"

    task: str
    base: dict[str, Any]
    tuned: dict[str, Any]
    penalty: float
    seed: int
    n_edges_total: int
    n_edges: int
    n_different: int
    different: dict[str, float]
    base_model: dict[str, Estimate]
    tuned_model: dict[str, Estimate]
    edges_in_both: int
    shared: SharedFigures
    history: Curves

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row an edge in the difference mask."""
        for edge, change in self.different.items():
            yield {"edge": edge, "change": change}


@checks_arguments
def find_difference(
    base: Workbench,
    tuned: Workbench,
    method: Method,
    *,
    penalty: float = 1e-3,
    pairs: int = 16,
    schedule: Schedule = SCHEDULE,
    sparsity: float | None = None,
    objective: Objective = kl_divergence,
    init: How = "confident",
    init_scale: float = 3.0,
    seed: int = 0,
    train: Fit | None = None,
    folder: Path | None = None,
) -> LearnedDifference:
    """Learn one mask for both models and the few edges whose masks must differ.

    Args:
        base, tuned: the models with their pairs; masks are on edges alone.
        method: whose scores, mean of both models, masks start from.
        penalty: nats that an edge in the difference mask costs.
        pairs: training pairs that edges are left out on, one by one.
        schedule: of the training.
        sparsity: share of edges that each circuit lacks; None takes the workbenches'.
        objective: of each model against its full model.
        init, init_scale: see `initial_log_alpha`.
        seed: of the noise.
        train: trains the learner and gives its curves; None takes a plain Trainer.
        folder: where both circuits go, as `base/` and `tuned/`; None writes none.

    Raises:
        UserError: models of different graphs or tokens, a penalty that is not above 0, or masks on more than edges.
    """
    layout = base.layout
    check_same_graph(base.subject, tuned.subject)
    check_same_tokens(base.data, tuned.data)
    if not penalty > 0:
        raise UserError(f"penalty={penalty} must be above 0; without it any edge may differ")
    if pairs < 1 or (sparsity is not None and not 0 < sparsity < 1):
        raise UserError(f"pairs={pairs} must be at least 1 and sparsity={sparsity} a share between 0 and 1")
    if sparsity is not None:  # trained and cut at one size
        base, tuned = (replace(one, count=edge_budget(sparsity, layout.n_edges)) for one in (base, tuned))
    if layout.sites != "edges" or layout.roles or not base.count:
        raise UserError("find_difference needs masks on edges alone (sites='edges', roles=False) and a sparsity")
    benches = base, tuned
    with phase("attribution", f"Scoring {layout.n_edges:,} edges of both"):
        start = _mean_scores([bench.score(method) for bench in benches])
        initial = initial_log_alpha(layout, init, start, base.count, init_scale)
    with phase("training", f"Training masks and their difference for {schedule.steps} steps"), base.training():
        losses, references = [bench.loss(objective) for bench in benches], [bench.references for bench in benches]
        target = 1 - base.count / layout.n_edges if sparsity is None else sparsity
        learner = DifferenceLearner(losses, references, initial, target, schedule, penalty, seed)
        learner.to(base.subject.device)
        history = (train or partial(fit, steps=schedule.steps, names=CURVES))(learner, base.data)
        learner.to(base.subject.device)
    with phase("leaving out", f"Leaving edges out one by one, on {pairs} pairs"):
        order = base.data.train.spread(pairs)
        found = learner.found(base.data.train.batches(base.data.eval_batch_size, order=order))
    with phase("evaluation", f"Evaluating both circuits on {len(base.data.test)} held-out pairs"):
        circuits = {"base": base.cut(found.base), "tuned": tuned.cut(found.tuned)}
        measured = [_measured(bench, circuits) for bench in benches]
    if folder is not None:
        for name, circuit in circuits.items():
            circuit.save(folder / name)
    (shared,) = shared_by_pairs(circuits).values()
    different = _different(found)
    return LearnedDifference(
        task=base.data.splits.name,
        base=base.subject.origin,
        tuned=tuned.subject.origin,
        penalty=penalty,
        seed=seed,
        n_edges_total=layout.n_edges,
        n_edges=base.count,
        n_different=len(different),
        different=different,
        base_model=measured[0],
        tuned_model=measured[1],
        edges_in_both=int((circuits["base"].kept & circuits["tuned"].kept).sum()),
        shared=with_holm(shared.figures()),
        history=history,
    )


def _mean_scores(scores: Sequence[EdgeScores]) -> EdgeScores:
    """The mean of both models' weights, each normalised, for a start that favours neither."""
    mean = sum(one.weight / one.weight.sum().clamp(min=1e-30) for one in scores) / len(scores)
    return EdgeScores(scores[0].graph, torch.as_tensor(mean), "mean of both", scores[0].roles, kind="share")


def _measured(bench: Workbench, circuits: dict[str, Circuit]) -> dict[str, Estimate]:
    """A model under its own circuit, and under the other's: what the difference is worth."""
    batches = bench.data.test.batches(bench.data.eval_batch_size)
    bed = TestBed.build(bench.model, bench.fresh_references(), batches)
    ran = {name: bed.run(circuit.kept) for name, circuit in circuits.items()}
    return {name: summarise([outcome], bed.full, bed.corrupted).kl for name, outcome in ran.items()}


def _different(found: SparseDifference) -> dict[str, float]:
    edges = found.open.any(0).nonzero()[:, 0].tolist()
    moved = {found.base.graph.edge_name(edge): float(found.change[:, edge].sum()) for edge in edges}
    return dict(sorted(moved.items(), key=lambda item: -abs(item[1])))
