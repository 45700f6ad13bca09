"""What a tuning story holds: its parts, shortened to what its page tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from circuitlit.compare.answers import Answers, AnswersApart
from circuitlit.compare.comparison import CircuitChange, Comparison
from circuitlit.compare.intervention_figures import Ablations, Enhancement, Transfer
from circuitlit.compare.interventions import Interventions
from circuitlit.compare.moved_layers import MovedLayers
from circuitlit.compare.turnover import Turnover
from circuitlit.compare.weight_figures import WeightSpread
from circuitlit.evaluate import Estimate
from circuitlit.result import Result
from circuitlit.timeline.evolution import TaskEvolution


@dataclass(frozen=True, kw_only=True)
class ShortComparison:
    """What a story tells of a `Comparison`: circuits without their list of edges, and where the weights moved."""

    n_edges_total: int
    resamples: int
    delta: float
    at_size: CircuitChange
    at_faithfulness: CircuitChange | None
    turnover: Turnover
    weights: WeightSpread

    @classmethod
    def of(cls, found: Comparison) -> ShortComparison:
        """Shortened."""
        matched = found.at_faithfulness
        return cls(
            n_edges_total=found.n_edges_total,
            resamples=found.resamples,
            delta=found.delta,
            at_size=replace(found.at_size, points=[]),
            at_faithfulness=matched and replace(matched, points=[]),
            turnover=found.turnover,
            weights=WeightSpread(relative=found.weights.relative, distribution=found.weights.distribution),
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The base against one way's model.

    Attributes:
        difference: of circuits and weights.
        layers: what some layers' weights carry.
    """

    difference: ShortComparison
    layers: list[MovedLayers]


@dataclass(frozen=True, kw_only=True)
class ShortInterventions:
    """What a story tells of `Interventions` on a way's model; what is transferred is the base's."""

    chosen: list[str]
    ablation: Ablations
    enhancement: Enhancement
    transfer: Transfer
    full_metric: Estimate

    @classmethod
    def of(cls, found: Interventions) -> ShortInterventions:
        """Shortened."""
        assert found.transfer is not None
        return cls(
            chosen=found.chosen,
            ablation=found.ablation,
            enhancement=found.enhancement,
            transfer=found.transfer,
            full_metric=found.full_metric,
        )


@dataclass(frozen=True, kw_only=True)
class Way(Answers, Difference):
    """One way to tune, with its answers and its difference from the base.

    Attributes:
        tuning: result of the tuning run.
        timeline: circuits over its checkpoints.
        nodes: interventions in the tuned model.
    """

    tuning: dict[str, Any]
    timeline: TaskEvolution
    nodes: ShortInterventions


@dataclass(frozen=True, kw_only=True, repr=False)
class TuningStory(Result):
    """What `tell_story` found.

    Attributes:
        status: FAILED where a way did not raise its score.
        reason: which, and why.
        task, model, method: what was learned, by what, and how circuits were scored.
        seed: of the random sets.
        score, steps: that tuning is judged by, and its steps.
        story: settings.
        ways: by name.
        between: answers of the first way minus those of the second.
    """

    schema: ClassVar[str] = "story"
    file: ClassVar[str] = "story.json"

    status: str
    reason: str | None
    task: str
    model: str
    method: str
    seed: int
    score: str
    steps: int
    story: dict[str, Any]
    ways: dict[str, Way]
    between: AnswersApart

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a way."""
        for name, way in self.ways.items():
            changes = {"accuracy_change": way.held_out.accuracy_change, "metric_change": way.held_out.metric_change}
            values = {key: estimate.value for key, estimate in (changes | {"text_kl": way.text_kl}).items()}
            size = way.difference.at_size
            yield {"way": name, "status": way.tuning["status"], **values, "circuits_changed": size.changed}
