"""LoRA's ranks by layer: from circuits, a gradient probe, uniform, at random, and AdaLoRA, at equal parameters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.arguments import check_once, checks_arguments
from circuitlit.compare.layers import changed_layers, circuit_layers, union_layers
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.finetune.finetune_model import Score, TunedModel
from circuitlit.finetune.guided_ranks import spread_ranks
from circuitlit.graph import Circuit
from circuitlit.progress import part
from circuitlit.result import Result, read_json

WAYS = ("uniform", "circuit_difference", "base_circuit", "union_circuit", "gradient_probe", "random_layers", "adalora")
BESIDE = ("uniform", "random_layers")  # ways that every other one is compared with
TOLERANCE = 0.01  # share by which trainable parameters may differ


@dataclass(frozen=True)
class RankSettings:
    """Ways to choose ranks, and how often each is tuned; the defaults are those of conf/guided.yaml.

    Attributes:
        ways: of `WAYS`, uniform first; random_layers shuffles the ranks of base_circuit, without it those of
            union_circuit, and must come after it.
        rank: mean rank of a layer, at least 2: every layer keeps rank 1.
        seeds: of the tuning runs; without two different ones no way is called better or worse.
        circuit_pairs: validation pairs that circuits are scored on.
        probe_batches: training batches of the gradient probe.
        adalora_lr: learning rate of AdaLoRA; None takes that which its maker has.
        subtasks: settings, parted by spaces, that each make a part of the task out of it; union_circuit needs two.

    Raises:
        UserError: they do not go together.
    """

    ways: list[str] = field(default_factory=lambda: [way for way in WAYS if way != "union_circuit"])
    rank: int = 8
    seeds: list[int] = field(default_factory=lambda: list(range(5)))
    circuit_pairs: int = 32
    probe_batches: int = 4
    adalora_lr: float | None = None
    subtasks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_once("seeds", self.seeds)
        ways = self.ways
        if not set(ways) <= set(WAYS) or ways[:1] != ["uniform"] or len(set(ways)) < len(ways):
            raise UserError(f"ways={ways} must begin with uniform and name each of {', '.join(WAYS)} at most once")
        if "random_layers" in ways and not {"base_circuit", "union_circuit"} & set(ways):
            raise UserError("ways: random_layers shuffles the ranks of base_circuit or union_circuit; name one, too")
        if "random_layers" in ways and ways.index("random_layers") < ways.index(self.shuffled):
            raise UserError(f"ways: random_layers shuffles the ranks of {self.shuffled}; name it after that")
        if ("union_circuit" in ways) != (len(self.subtasks) > 1):
            raise UserError("union_circuit joins the circuits of at least two subtasks; name them, or leave both out")
        if self.rank < 2 or not self.seeds:
            raise UserError("rank must be at least 2 (every layer keeps rank 1), and there must be a seed")

    @property
    def shuffled(self) -> str:
        """The way whose ranks random_layers shuffles."""
        return "base_circuit" if "base_circuit" in self.ways else "union_circuit"


@dataclass(frozen=True, kw_only=True)
class RankedTuning:
    """One tuning run and its answers to every held-out pair.

    Attributes:
        task, model, steps: what was tuned on, what, and for how many steps.
        ranks: of each layer; None where the adapter chose them itself.
        n_trained: trainable parameters.
        accuracy, metric: of each pair: 1 for a right answer and 0 for a wrong one; the task's metric.
        group: of each pair; pairs of equal numbers share a sentence.
    """

    task: str
    model: str
    steps: int
    ranks: list[int] | None
    n_trained: int
    accuracy: list[float]
    metric: list[float]
    group: list[int]

    @classmethod
    def read(cls, tuned: TunedModel, folder: Path, ranks: Sequence[int] | None) -> Self:
        """Of a model that `finetune_model` has tuned, with its answers in the folder that it wrote."""
        return cls(
            task=tuned.task,
            model=tuned.model,
            steps=tuned.steps,
            ranks=None if ranks is None else list(ranks),
            n_trained=tuned.n_parameters_trained,
            **read_json(folder / "held_out.json"),
        )


@dataclass(frozen=True)
class RankMakers:
    """What `compare_rank_patterns` tunes and scores with.

    Attributes:
        n_layers: of the model.
        tune: tunes the base model, given the way's name, a seed, and each layer's rank or None for AdaLoRA's own.
        circuit: of the base model, or of that tuned with uniform ranks and the first seed; scored on so many pairs.
        probe: each layer's share of the gradient, given the mean rank and the number of training batches.
        subtask: circuit of the base model on a part of the task, given the settings that make it and how many pairs;
            needed for union_circuit.
    """

    n_layers: int
    tune: Callable[[str, int, list[int] | None], RankedTuning]
    circuit: Callable[[Literal["base", "tuned"], int], Circuit]
    probe: Callable[[int, int], Float[Tensor, "layer"]]
    subtask: Callable[[str, int], Circuit] | None = None


@dataclass(frozen=True, kw_only=True)
class RankedWay:
    """One way to choose ranks, over all seeds.

    Attributes:
        n_trained: trainable parameters.
        of_uniform: these over those of uniform ranks.
        score: mean over held-out pairs and seeds; with one seed its intervals say nothing of others.
        minus: the same less that of uniform ranks, and less that of random layers; each time the intervals of all ways
            hold at once (Bonferroni).
        by_seed: the score of each seed.
        ranks: of each layer, for random layers by seed; None for AdaLoRA.
    """

    n_trained: int
    of_uniform: float
    score: Estimate
    minus: dict[str, Estimate]
    by_seed: list[float]
    ranks: list[int] | list[list[int]] | None


@dataclass(frozen=True, kw_only=True, repr=False)
class RankComparison(Result):
    """What `compare_rank_patterns` found.

    Attributes:
        task, model, steps: what was tuned on, what, and for how many steps.
        score: that ways are compared by, on held-out pairs.
        settings: ways, ranks and seeds.
        ranks: of each layer, for the ways that have the same ones with all seeds.
        ways: by name.
    """

    schema: ClassVar[str] = "rank_comparison"
    file: ClassVar[str] = "guided.json"

    task: str
    model: str
    score: Score
    steps: int
    settings: RankSettings
    ranks: dict[str, list[int]]
    ways: dict[str, RankedWay]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a way."""
        for name, way in self.ways.items():
            minus = {f"minus_{other}": way.minus[other].value if other in way.minus else None for other in BESIDE}
            yield {"way": name, "n_trained": way.n_trained, "score": way.score.value, **minus}


@checks_arguments
def compare_rank_patterns(
    makers: RankMakers, settings: RankSettings | None = None, *, score: Score = "accuracy"
) -> RankComparison:
    """Tune with the ranks of every way and with every seed, and compare what the models do on held-out pairs.

    Args:
        makers: how a model is tuned, and circuits and gradients are scored.
        settings: ways, ranks and seeds.
        score: of the held-out pairs that ways are compared by.

    Raises:
        UserError: ways train different numbers of parameters.
    """
    settings = settings or RankSettings()
    circuit = cache(lambda model: makers.circuit(model, settings.circuit_pairs))
    runs: dict[str, list[RankedTuning]] = {name: [] for name in settings.ways}
    ranks: dict[str, list[int]] = {}
    for seed in settings.seeds:
        with part(f"seed{seed}", f"Seed {seed}: {len(settings.ways)} ways"):
            for name in settings.ways:
                if name == "adalora":
                    own = None
                elif name == "random_layers":
                    own = list(ranks[settings.shuffled])
                    random.Random(f"layers/{seed}").shuffle(own)
                else:
                    own = ranks[name] = ranks.get(name) or _ranks(name, makers, settings, circuit)
                runs[name].append(makers.tune(name, seed, own))
    first = runs["uniform"][0]
    return RankComparison(
        task=first.task,
        model=first.model,
        score=score,
        steps=first.steps,
        settings=settings,
        ranks=ranks,
        ways={name: _summary(name, runs, score) for name in settings.ways},
    )


def _ranks(name: str, makers: RankMakers, settings: RankSettings, circuit: Callable[[str], Circuit]) -> list[int]:
    """Ranks of each layer, the same for all seeds."""
    if name == "uniform":
        return [settings.rank] * makers.n_layers
    if name == "gradient_probe":
        shares = makers.probe(settings.rank, settings.probe_batches)
    elif name == "union_circuit":
        if makers.subtask is None:
            raise UserError("union_circuit needs makers.subtask, which scores the circuit of a part of the task")
        shares = union_layers([makers.subtask(part_of, settings.circuit_pairs) for part_of in settings.subtasks])
    elif name == "base_circuit":
        shares = circuit_layers(circuit("base"))
    else:
        shares = changed_layers(circuit("base"), circuit("tuned"))
    return spread_ranks(shares, settings.rank)


def _summary(name: str, runs: Mapping[str, Sequence[RankedTuning]], score: Score) -> RankedWay:
    """Mean score, and the paired difference to uniform ranks and to random layers; pairs and seeds are resampled."""
    own = runs[name]
    trained, reference = own[0].n_trained, runs["uniform"][0].n_trained
    if name != "adalora" and abs(trained - reference) > TOLERANCE * reference:
        raise UserError(
            f"{name} trains {trained:,} parameters, uniform {reference:,}; the adapted modules differ by layer"
        )
    groups = torch.tensor(own[0].group)
    scores = {way: torch.tensor([getattr(run, score) for run in made]).double() for way, made in runs.items()}
    others = [other for other in BESIDE if other in runs and other != name]
    return RankedWay(
        n_trained=trained,
        of_uniform=trained / reference,
        score=mean_estimate(scores[name], groups),
        minus={other: mean_estimate(scores[name] - scores[other], groups, together=len(runs) - 1) for other in others},
        by_seed=scores[name].mean(1).tolist(),
        ranks=[run.ranks for run in own if run.ranks] if name == "random_layers" else own[0].ranks,
    )
