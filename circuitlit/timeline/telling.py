"""A whole tuning story: tune in several ways, follow the circuits, compare, move layers, intervene.

Circuits are scored on pairs that tuning never saw; everything that is said of them is measured on test pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.compare.answers import AllAnswers, compare_answers
from circuitlit.compare.comparison import Comparison, compare_models
from circuitlit.compare.intervention_case import CLAIMS
from circuitlit.compare.interventions import intervene_on_nodes
from circuitlit.compare.layers import changed_layers, circuit_layers
from circuitlit.compare.moved_layers import move_layers
from circuitlit.compare.scored import ScoredModel
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import TESTS
from circuitlit.evaluate.testing import enough_draws, with_holm
from circuitlit.graph import Circuit, load_circuit
from circuitlit.graph.nodes import plain_kinds
from circuitlit.model import Subject
from circuitlit.progress import part, phase
from circuitlit.result import Result
from circuitlit.tasks import EncodedPairs
from circuitlit.timeline.evolution import TaskEvolution
from circuitlit.timeline.story import Difference, ShortComparison, ShortInterventions, TuningStory, Way

COMPARISONS = 2  # of circuits: base and tuned, neighbouring checkpoints
RANKINGS = 3  # of layers: by circuit difference, base circuit and weight change
Kind = TypeVar("Kind")
Found = TypeVar("Found", bound=Result)
Once = Callable[[str, str, Callable[[], Any], Any], Any]
Done = Callable[[Any, Path, Subject], Any]


@dataclass(frozen=True)
class Makers:
    """What a story is made with, beside the functions that it calls.

    Attributes:
        tune: by way: tunes and writes `tuned/` and checkpoints into a folder; returns status, reason, score, steps.
        base: the model before tuning with the circuits' pairs, and the pairs of the whole task; called after tuning.
        load: the model in a folder, under a name.
        bench: a model with the circuits' pairs.
        follow: from a way's name and folder: follows the circuits over its checkpoints and writes `circuits/` into
            `evolve/` there.
        text: passages for a model, kept in a folder.
    """

    tune: Mapping[str, Callable[[Path], dict[str, Any]]]
    base: Callable[[], tuple[Workbench, EncodedPairs]]
    load: Callable[[Path, str], Subject]
    bench: Callable[[Subject], Workbench]
    follow: Callable[[str, Path], TaskEvolution]
    text: Callable[[Subject, Path], Int[Tensor, "passage pos"]]


def made(name: str, text: str, work: Callable[[], Kind], kind: type[Kind]) -> Kind:
    """Make a part anew."""
    with part(name, text):
        return work()


def saved(result: Found, folder: Path, _of: Subject) -> Found:
    """Save a part's result."""
    result.save(folder)
    return result


def story_draws(ways: int, sizes: int) -> int:
    """Random sets with which every claim of a story can be significant.

    Args:
        ways: to tune.
        sizes: numbers of layers that are moved.
    """
    return enough_draws(ways * (RANKINGS * sizes + CLAIMS + COMPARISONS * TESTS))


@checks_arguments
def tell_story(
    makers: Makers,
    method: Method,
    folder: Path,
    *,
    layers: Sequence[int] = (1, 2, 4),
    pairs: int = 64,
    draws: int | None = None,
    seed: int = 0,
    comparing: Mapping[str, Any] | None = None,
    intervening: Mapping[str, Any] | None = None,
    once: Once = made,
    done: Done = saved,
) -> TuningStory:
    """Tune in several ways and compare what they did to circuits, nodes, layers and answers.

    Args:
        makers: how models are tuned, loaded and followed.
        method: how edges are scored.
        folder: where each way has its folder: `tune/`, `evolve/`, `compare/`, `intervene/`.
        layers: numbers of layers that are moved into the base.
        pairs: test pairs that layers are measured on.
        draws: random sets beside every claim; None takes as many as significance needs.
        seed: of these.
        comparing, intervening: more settings of `compare_models` and `intervene_on_nodes`.
        once: makes a part, or takes what was made before: its name, what is said, how it is made, its type.
        done: saves a part's result, of some model, into a folder, and shows it.

    Raises:
        UserError: fewer than two ways.
    """
    names = list(makers.tune)
    if len(names) < 2:
        raise UserError("a story needs at least two ways to tune")
    tunings: dict[str, dict[str, Any]] = {}
    for name, tune in makers.tune.items():
        work = partial(tune, folder / name / "tune")
        tunings[name] = once(f"{name}_tuning", f"{name}: tuning", work, dict[str, Any])
    most = draws or story_draws(len(names), len(layers))
    teller = _Teller(makers, method, folder, layers, pairs, most, seed, comparing or {}, intervening or {}, done)
    text = "Testing all ways on the same held-out pairs and on other text"
    answered: AllAnswers = once("answers", text, teller.answers, AllAnswers)
    ways = {}
    for name in names:
        text, follow = f"{name}: following the circuit", partial(makers.follow, name, folder / name)
        timeline: TaskEvolution = once(f"{name}_timeline", text, follow, TaskEvolution)
        text = f"{name}: comparing, and moving layers into the base model"
        apart: Difference = once(f"{name}_difference", text, partial(teller.difference, name), Difference)
        nodes = once(f"{name}_nodes", f"{name}: intervening", partial(teller.nodes, name), ShortInterventions)
        own = vars(answered.ways[name]) | vars(apart)
        ways[name] = Way(tuning=tunings[name], timeline=timeline, nodes=nodes, **own)
    short = [f"{name}: {tuning['reason']}" for name, tuning in tunings.items() if tuning["reason"]]
    first = tunings[names[0]]
    return TuningStory(
        status="FAILED" if short else "OK",
        reason="; ".join(short) or None,
        task=first["task"],
        model=first["model"],
        method=method.name,
        seed=seed,
        score=first["score"],
        steps=first["steps"],
        story={"layers": list(layers), "pairs": pairs, "draws": draws},
        ways=with_holm(ways),
        between=answered.between,
    )


@dataclass(frozen=True)
class _Teller:
    """Makes the parts that need the base model, which is loaded when the first of them is made."""

    makers: Makers
    method: Method
    folder: Path
    layers: Sequence[int]
    pairs: int
    draws: int
    seed: int
    comparing: Mapping[str, Any]
    intervening: Mapping[str, Any]
    done: Done
    scored: dict[str, ScoredModel] = field(default_factory=dict)

    @cached_property
    def base(self) -> tuple[Workbench, EncodedPairs]:
        return self.makers.base()

    @cached_property
    def text(self) -> Int[Tensor, "passage pos"]:
        return self.makers.text(self.base[0].subject, self.folder)

    def answers(self) -> AllAnswers:
        """Of all ways' models, one loaded after the other."""
        (base, test), load = self.base, self.makers.load
        tuned = ((name, load(self.folder / name / "tune", name)) for name in self.makers.tune)
        return compare_answers(base.subject, tuned, test, base.data.eval_batch_size, self.text)

    def difference(self, name: str) -> Difference:
        """Circuits and weights, and layers chosen on the circuits' pairs, measured on test pairs."""
        place = self.folder / name
        with phase("load", "Loading both models"):
            base, test = self.base
            bench = self.makers.bench(self.makers.load(place / "tune", "tuned"))
        self.scored.pop("tuned", None)  # another way's; the base is scored once
        settings = {"draws": self.draws, **self.comparing}
        found = compare_models(base, bench, self.method, scored=self.scored, **settings)
        found = self.done(found, place / "compare", base.subject)
        batches = list(test.batches(base.data.eval_batch_size, order=test.spread(self.pairs)))
        rankings = _rankings(self.scored, found)
        moved = move_layers(
            base.subject, bench.subject, batches, self.text, rankings, self.layers, self.draws, self.seed
        )
        return Difference(difference=ShortComparison.of(found), layers=moved)

    def nodes(self, name: str) -> ShortInterventions:
        """In the tuned model, beside the base's nodes put back."""
        place = self.folder / name
        with phase("load", "Loading the model and the pairs"):
            bench = self.makers.bench(self.makers.load(place / "tune", "base"))
            circuit = last_circuit(place / "evolve" / "circuits", bench)
            text = self.makers.text(bench.subject, place / "intervene")
        settings = {"text": text, "draws": self.draws, "seed": self.seed, "kinds": plain_kinds(bench.subject.graph)}
        found = intervene_on_nodes(bench, circuit, tuned=self.base[0].subject, **settings | {**self.intervening})
        return ShortInterventions.of(self.done(found, place / "intervene", bench.subject))


def last_circuit(folder: Path, bench: Workbench) -> Circuit:
    """The circuit of the last checkpoint, cut anew where it keeps no edge."""
    last = max(folder.iterdir(), key=lambda path: int(path.name.rsplit("step", 1)[1]))
    found = load_circuit(last, bench.subject.graph)
    return found if found.n_edges else bench.cut(found.scores)


def _rankings(scored: Mapping[str, ScoredModel], found: Comparison) -> dict[str, Float[Tensor, "layer"]]:
    base, tuned = (scored[name].resampled.circuit for name in ("base", "tuned"))
    energy = found.weights.distribution["layer"].share
    places = range(base.graph.n_layers)
    return {
        "circuit difference": changed_layers(base, tuned),
        "base circuit": circuit_layers(base),
        "weight change": torch.tensor([energy.get(str(layer), 0.0) for layer in places], dtype=torch.float64),
    }
