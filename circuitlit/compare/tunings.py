"""Several ways to tune a model, each at its checkpoint of one score: circuits, weights, attention, other text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.compare.difference import Resampled
from circuitlit.compare.effects import PairBed, answers_changed, model_text_kl
from circuitlit.compare.likeness import attention_change
from circuitlit.compare.matched_checkpoints import Score, checkpoint_scores, common_level, nearest_step
from circuitlit.compare.scored import facts_of, resampled_scores
from circuitlit.compare.turnover import Circuits, Turnover, turnovers
from circuitlit.compare.ways import WayOverlap, way_overlap
from circuitlit.compare.weight_figures import Reach
from circuitlit.compare.weights import check_same_graph, check_same_tokens, check_same_vocabulary, weight_changes
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.overlap import draws_for
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import with_holm
from circuitlit.finetune import BehaviourChange
from circuitlit.graph import EdgeScores
from circuitlit.model import Subject
from circuitlit.progress import phase
from circuitlit.result import Result

PARTS = ("nodes", "edges")  # of circuits, whose overlaps say whether ways differ: a claim each


@dataclass(frozen=True)
class ScoreFigures:
    """How strong and how spread the effects of all edges are; of other kinds of scores, their weights.

    Attributes:
        intensity: mean absolute effect, in its unit.
        entropy: of the shares of all of them, 1 even and 0 in one edge.
        kurtosis: fourth moment over the squared second, less 3; None where all are equal.

    Source: arXiv 2509.21044.
    """

    intensity: float
    entropy: float
    kurtosis: float | None

    @classmethod
    def of(cls, scores: EdgeScores) -> ScoreFigures:
        """Of some scores."""
        values: Float[Tensor, "edge"] = scores.signed.sum(0)
        size = values.abs()
        share = size / size.sum().clamp(min=torch.finfo(torch.float64).tiny)
        centred = values - values.mean()
        spread = centred.square().mean()
        return cls(
            float(size.mean()),
            float(torch.special.entr(share).sum()) / math.log(len(share)),
            float(centred.pow(4).mean() / spread.square()) - 3 if float(spread) else None,
        )


@dataclass(frozen=True, kw_only=True)
class TunedRun:
    """One way to tune.

    Attributes:
        run: its folder.
        step: of its checkpoint.
        matched_score: validation score of the checkpoint.
        held_out: answers on test pairs.
        weights: how far they moved.
        attention: how far it moved, see `attention_change`; None for models whose attention is not plain.
        text_kl: KL(base || it) on other text, nats a token.
        scores: strength and spread of the edges' effects.
        from_base: what its circuit shares with the base's.
    """

    run: str
    step: int
    matched_score: float
    held_out: BehaviourChange
    weights: Reach
    attention: Estimate | None
    text_kl: Estimate
    scores: ScoreFigures
    from_base: Turnover


@dataclass(frozen=True, kw_only=True)
class RunPair(Turnover):
    """What the circuits of two runs share.

    Attributes:
        of: their names.
    """

    of: list[str]


@dataclass(frozen=True, kw_only=True)
class SharedEdges:
    """Edges of several circuits.

    Attributes:
        all, any: in all of them, in any.
        only: in one alone, by run.
    """

    all: int
    any: int
    only: dict[str, int]


@dataclass(frozen=True, kw_only=True, repr=False)
class TuningComparison(Result):
    """What `compare_tunings` found.

    Attributes:
        task, method, ablation: what circuits were scored on, and how.
        seed: of the resamples.
        match, level: the validation score that runs are matched on, and its value.
        base: name and provenance of the model that was tuned.
        n_edges, n_edges_total: of each circuit and of the graph.
        resamples: of the training pairs.
        base_scores: strength and spread of the base's effects.
        runs: by name.
        pairs: every two runs.
        shared: edges of all runs' circuits.
        ways: of "nodes" and of "edges", whether two ways share less than two seeds of one; empty where not two ways
            have several seeds. A run's way is its name without the number at its end.
    """

    schema: ClassVar[str] = "tunings"
    file: ClassVar[str] = "tunings.json"

    task: str
    method: str
    ablation: str
    seed: int
    match: Score
    level: float
    base: dict[str, Any]
    n_edges: int
    n_edges_total: int
    resamples: int
    base_scores: ScoreFigures
    runs: dict[str, TunedRun]
    pairs: list[RunPair]
    shared: SharedEdges
    ways: dict[str, WayOverlap] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a run."""
        for name, run in self.runs.items():
            estimates = {"metric": run.held_out.metric_tuned, "accuracy": run.held_out.accuracy_tuned}
            estimates |= {"kl": run.held_out.kl, "text_kl": run.text_kl, "edges_retained": run.from_base.edges.retained}
            values = {key: estimate.value for key, estimate in estimates.items()}
            yield {"run": name, "step": run.step, **values, **vars(run.weights)}


@checks_arguments
def compare_tunings(
    base: Workbench,
    runs: Mapping[str, Path],
    load: Callable[[str, Path], Workbench],
    method: Method,
    text: Int[Tensor, "passage pos"],
    *,
    match: Score = "metric",
    level: float | None = None,
    resamples: int = 10,
    seed: int = 0,
    draws: int | None = None,
) -> TuningComparison:
    """Compare runs of fine-tuning that began with the same model.

    Args:
        base: the model before tuning, with its pairs.
        runs: their folders by name; `run_names` makes names.
        load: from a run's name and the folder of a checkpoint to its model, with the same pairs.
        method: how edges are scored.
        text: other text, on which each model's KL from the base is measured.
        match: the validation score that runs are matched on.
        level: score to match at; None is the highest that all runs reach.
        resamples: of the training pairs, for the noise floor; at least ten.
        seed: of the resamples.
        draws: random circuits beside every overlap; None takes as many as significance needs.

    Raises:
        UserError: fewer than two runs, one without checkpoints, one of another graph, or one twice.
    """
    if len(runs) < 2:
        raise UserError("runs needs at least two runs of fine-tuning")
    series = {name: checkpoint_scores(path, match) for name, path in runs.items()}
    level = common_level(series) if level is None else float(level)
    steps = {name: nearest_step(name, scores, level) for name, scores in series.items()}
    subject, draws = base.subject, draws or draws_for(len(runs) * (len(runs) + 1) // 2, len(PARTS))
    with phase("base", "Scoring the base model"):
        pairs = PairBed(subject, base.data.test.batches(base.data.eval_batch_size))
        before = Circuits.of(resampled_scores(base, method, resamples, seed), draws, 0)
    circuits: dict[str, Circuits] = {}
    figures: dict[str, dict[str, Any]] = {}
    for number, (name, path) in enumerate(runs.items(), start=1):
        with phase(f"run_{name}", f"{name} at step {steps[name]}"):
            own = load(name, Path(path) / "checkpoints" / f"step_{steps[name]:06d}")
            check_same_graph(subject, own.subject, f"run {name}")
            check_same_tokens(base.data, own.data, f"run {name}")
            check_same_vocabulary(subject, own.subject, f"run {name}")
            circuits[name] = Circuits.of(resampled_scores(own, method, resamples, seed), draws, number)
            _check_another(name, circuits)
            figures[name] = {
                "run": str(path),
                "step": steps[name],
                "matched_score": series[name][steps[name]],
                "held_out": answers_changed(pairs, own.subject),
                "scores": ScoreFigures.of(circuits[name].model.scores),
                **_changes(subject, own, text),
            }
    with phase("overlaps", "Comparing every two circuits"):
        shared = turnovers([before, *circuits.values()], seed)
    number = {name: place for place, name in enumerate(circuits, start=1)}
    found = {name: TunedRun(from_base=shared[0, number[name]], **own) for name, own in figures.items()}
    between = [RunPair(**vars(shared[number[a], number[b]]), of=[a, b]) for a, b in combinations(circuits, 2)]
    result = TuningComparison(
        **facts_of(base, method, seed),
        match=match,
        level=level,
        n_edges=base.count,
        resamples=resamples,
        base_scores=ScoreFigures.of(before.model.scores),
        runs=found,
        pairs=between,
        shared=_shared({name: side.model for name, side in circuits.items()}),
        ways=_ways(list(runs), between),
    )
    return with_holm(result)


def _way(name: str) -> str:
    return re.sub(r" \d+$", "", name)


def _check_another(name: str, circuits: Mapping[str, Circuits]) -> None:
    """Refuse a copy of a run, a link to it or the same seed again: it would count as a second seed of its way."""
    own = circuits[name].model.scores.signed
    for other, theirs in circuits.items():
        if other != name and _way(other) == _way(name) and torch.equal(theirs.model.scores.signed, own):
            raise UserError(f"{name} is the very model of {other}: one run twice; leave one out, or take another seed")


def _ways(names: list[str], pairs: list[RunPair]) -> dict[str, WayOverlap]:
    ways = list(map(_way, names))
    found = {}
    for part in PARTS:
        overlaps = {tuple(map(names.index, pair.of)): getattr(pair, part).corrected for pair in pairs}
        if (overlap := way_overlap(ways, overlaps)) is not None:  # pyright: ignore[reportArgumentType]
            found[part] = overlap
    return found


def _changes(base: Subject, own: Workbench, text: Int[Tensor, "passage pos"]) -> dict[str, Any]:
    """How far a tuned model's weights, attention and answers to other text are from the base's."""
    tuned, test = own.subject, own.data.test
    attention = attention_change(base, tuned, list(test.batches(own.data.eval_batch_size)))
    return {
        "weights": Reach.of(list(weight_changes(base, tuned))),
        "attention": None if attention is None else mean_estimate(attention, None),
        "text_kl": mean_estimate(model_text_kl(base, tuned, text), None),
    }


def _shared(circuits: dict[str, Resampled]) -> SharedEdges:
    every = torch.stack([side.kept for side in circuits.values()])
    return SharedEdges(
        all=int(every.all(0).sum()),
        any=int(every.any(0).sum()),
        only={name: int((side.kept & (every.sum(0) == 1)).sum()) for name, side in circuits.items()},
    )
