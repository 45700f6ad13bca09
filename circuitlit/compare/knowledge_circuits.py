"""Circuits of what a model knows, one a task, and what those of facts, language and reasoning share."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.evaluate.controls import shuffled_circuit
from circuitlit.evaluate.measure import TestBed, masked_logits
from circuitlit.evaluate.overlap import DRAWS, Overlap, StandIns, jaccards
from circuitlit.evaluate.overlap_figures import OverlapFigures
from circuitlit.evaluate.similarity import beyond_chance, corrected_jaccard
from circuitlit.evaluate.statistics import Estimate, mean_estimate, paired_difference
from circuitlit.evaluate.summary import summarise
from circuitlit.evaluate.testing import enough_draws
from circuitlit.graph import Circuit, Graph
from circuitlit.objective import Outcome
from circuitlit.tasks import EncodedPairs

SPLITS = 20  # into halves
Kept = Bool[Tensor, "draw edge"]


@dataclass(frozen=True)
class KnowledgeCircuit:
    """A task's circuit, on test pairs that the model answers.

    Attributes:
        n_edges, n_edges_reachable: its edges.
        n_train, n_pairs, n_groups: answered pairs that it was found on, and measured on, and the latter's sentences
            or facts.
        kl, faithfulness: to the model, see `Summary`.
        corrupted_kl, shuffled_kl: KL without any edge, and of circuits in which every node has as many edges, another
            one for every batch.
        shuffled_minus_circuit_kl: pair by pair, nats; above 0 the circuit is closer to the model.
        halves: J* of the circuits that two halves of the training sentences give, the mean and the 2.5 and 97.5 %
            quantiles over splits: what circuits of different tasks can share at most. None where each would cost an
            attribution.
    """

    n_edges: int
    n_edges_reachable: int
    n_train: int
    n_pairs: int
    n_groups: int
    kl: Estimate
    faithfulness: Estimate
    corrupted_kl: Estimate
    shuffled_kl: Estimate
    shuffled_minus_circuit_kl: Estimate
    halves: Estimate | None


@dataclass(frozen=True)
class KnowledgeOverlap:
    """Edges that the circuits of two tasks share, or the mean over all pairs of tasks of two kinds of knowledge.

    Attributes:
        of: the two tasks, or kinds; a kind with itself is its tasks with each other.
        pairs: of tasks.
        edges: beside circuits drawn uniformly, and such in which every node has as many edges.
        low, high: 2.5 and 97.5 % quantiles of J* under the strictest of these over resampled training sentences; a
            resample knows fewer of them, so both lie low. None where each would cost an attribution.
    """

    of: list[str]
    pairs: int
    edges: OverlapFigures
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A circuit, and those that resampled training sentences give (none, where each would cost an attribution).

    Each is the numbers of its edges.
    """

    edges: list[int]
    resampled: list[list[int]]


def knowledge_circuit(
    bench: Workbench, method: Method, train: Sequence[int], test: Sequence[int], resamples: int, seed: int = 0
) -> tuple[KnowledgeCircuit, Drawn]:
    """Find and measure a task's circuit.

    Args:
        bench: model, pairs and the size of the circuit.
        method: how edges are scored.
        train, test: numbers of the pairs that the model answers.
        resamples: of the training sentences.
        seed: of these and of the halves.
    """
    own = bench.on(train)
    resampler = Resampler(own, method)
    circuit = own.cut(resampler.scores)
    bed = TestBed.of(bench, bench.data.test, test)
    found, shuffled = bed.run(circuit.kept), _shuffled(bed, circuit)
    summary = summarise([found], bed.full, bed.corrupted)
    rng, drawn, halves = random.Random(seed), [], None
    if resampler.by_pair and resamples:
        groups = _by_group(own.data.train)
        samples = [[row for group in rng.choices(groups, k=len(groups)) for row in group] for _ in range(resamples)]
        drawn = [_edges(own.best(resampler(rows))) for rows in samples]
        halves = _halves(own, resampler, groups, rng)
    measured = KnowledgeCircuit(
        n_edges=circuit.n_edges,
        n_edges_reachable=circuit.n_reachable,
        n_train=len(train),
        n_pairs=len(found.kl),
        n_groups=len(found.group.unique()),
        kl=summary.kl,
        faithfulness=summary.faithfulness,
        corrupted_kl=mean_estimate(bed.corrupted.kl, found.group),
        shuffled_kl=mean_estimate(shuffled.kl, found.group),
        shuffled_minus_circuit_kl=paired_difference(shuffled.kl, found.kl, found.group),
        halves=halves,
    )
    return measured, Drawn(_edges(circuit.kept), drawn)


def _edges(kept: Kept) -> list[int]:
    return kept[0].nonzero()[:, 0].tolist()


def _kept(sets: Sequence[Sequence[int]], n_edges: int) -> Kept:
    """The inverse of `_edges`, for several sets."""
    kept = torch.zeros(len(sets), n_edges, dtype=torch.bool)
    for row, edges in zip(kept, sets, strict=True):
        row[torch.tensor(edges, dtype=torch.long)] = True
    return kept


def _shuffled(bed: TestBed, circuit: Circuit) -> Outcome:
    parts = []
    for seed, (batch, reference) in enumerate(zip(bed.batches, bed.references, strict=True)):
        kept = shuffled_circuit(circuit.graph, circuit.kept, seed)
        parts.append(Outcome.of(masked_logits(bed.model, kept, batch, reference), reference.teacher, batch))
    return Outcome.join(parts)


def _by_group(pairs: EncodedPairs) -> list[list[int]]:
    """Numbers of the pairs of each sentence or fact."""
    groups: dict[int, list[int]] = {}
    for row in range(len(pairs)):
        groups.setdefault(pairs.groups[row] if pairs.groups else row, []).append(row)
    return list(groups.values())


def _halves(bench: Workbench, resampler: Resampler, groups: list[list[int]], rng: random.Random) -> Estimate | None:
    if len(groups) < 2:
        return None
    values = []
    for _ in range(SPLITS):
        order = rng.sample(groups, len(groups))
        parts = order[: len(order) // 2], order[len(order) // 2 :]
        one, two = (bench.best(resampler([row for group in part for row in group])) for part in parts)
        values.append(corrected_jaccard(one, two))
    found = torch.tensor(values, dtype=torch.float64)
    return Estimate.of(found.mean(), found)


def knowledge_overlaps(
    found: Mapping[str, Drawn], graph: Graph, packs: Mapping[str, Sequence[str]], seed: int = 0
) -> list[KnowledgeOverlap]:
    """What every two circuits share, and every two kinds of knowledge.

    Args:
        found: circuits by task.
        graph: that they are of.
        packs: the tasks of each kind; those without a circuit do not count.
        seed: of the stand-ins.
    """
    couples = list(combinations(found, 2))
    kinds = {
        (one, two): [pair for pair in couples if sorted(pair) in _couples(packs[one], packs[two])]
        for one, two in combinations_with_replacement(packs, 2)
    }
    kinds = {both: own for both, own in kinds.items() if own}
    draws = max(DRAWS, enough_draws(len(couples) + len(kinds)))
    kept = {name: _kept([own.edges], graph.n_edges)[0] for name, own in found.items()}
    sides = {name: StandIns(graph, own, draws, seed + number) for number, (name, own) in enumerate(kept.items())}
    resampled = {name: _kept(own.resampled, graph.n_edges) for name, own in found.items()}
    overlaps = {pair: sides[pair[0]].edge_overlap(sides[pair[1]]) for pair in couples}
    made = [_overlap(pair, [pair], overlaps, resampled) for pair in couples]
    return made + [_overlap(both, own, overlaps, resampled) for both, own in kinds.items()]


def _couples(ours: Sequence[str], theirs: Sequence[str]) -> list[list[str]]:
    return [sorted((one, two)) for one in ours for two in theirs if one != two]


def _overlap(
    of: tuple[str, str],
    couples: Sequence[tuple[str, str]],
    overlaps: Mapping[tuple[str, str], Overlap],
    resampled: Mapping[str, Kept],
) -> KnowledgeOverlap:
    mean = Overlap.mean([overlaps[pair] for pair in couples])
    values = [_resampled(resampled[one], resampled[two]) for one, two in couples]
    low = high = None
    if all(len(value) for value in values):
        drawn = beyond_chance(torch.stack(values).mean(0), torch.tensor(mean.strictest.expected, dtype=torch.float64))
        low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return KnowledgeOverlap(list(of), len(couples), mean.figures(claim=True), low, high)


def _resampled(ours: Kept, theirs: Kept) -> Float[Tensor, "draw"]:
    """Jaccard index of the circuits of each resample."""
    pairs = zip(ours, theirs, strict=False)
    values = [jaccards(one[None], two[None])[0, 0] for one, two in pairs]
    return torch.stack(values) if values else torch.empty(0)
