"""A base model and a tuned one: circuits, weights, and answers on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from circuitlit.arguments import check_shares, checks_arguments
from circuitlit.compare.difference import LABELS, CircuitDifference, Resampled, circuit_difference
from circuitlit.compare.effects import PairBed, answers_changed
from circuitlit.compare.mode_shares import LEAST, ModeShare, mode_shares
from circuitlit.compare.nodes import node_modes
from circuitlit.compare.reuse import Reuse, Swaps, swap_nodes
from circuitlit.compare.scored import SIZES, ScoredModel, facts_of, score_model
from circuitlit.compare.turnover import Circuits, Turnover, turnover
from circuitlit.compare.weight_figures import WeightChange, module_intruders, node_changes
from circuitlit.compare.weights import check_same_graph, check_same_tokens, check_same_vocabulary, weight_changes
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import draws_for
from circuitlit.evaluate.testing import with_holm
from circuitlit.finetune import BehaviourChange
from circuitlit.progress import phase
from circuitlit.result import Result

SHOWN = 3000  # edges that a result lists one by one


@dataclass(frozen=True)
class EdgeShares:
    """One edge of either circuit.

    Attributes:
        edge: its name.
        base, tuned: its share of each circuit's weight, 0 outside.
        label: what became of it.
    """

    edge: str
    base: float
    tuned: float
    label: str


@dataclass(frozen=True, kw_only=True)
class CircuitChange:
    """Edges and nodes of two circuits.

    Attributes:
        n_edges: of the base's and of the tuned model's circuit.
        counts: edges of each label.
        changed: whether the circuits differ by more than resampling the training pairs does within a model.
        distance, floor, effect: see `CircuitDifference`.
        edges: of each label, those whose shares changed most.
        nodes: of each mode, see `node_modes`.
        points: edges of either circuit, largest share first.
    """

    n_edges: dict[str, int]
    counts: dict[str, int]
    changed: bool
    distance: float
    floor: float
    effect: float | None
    edges: dict[str, list[str]]
    nodes: dict[str, list[str]]
    points: list[EdgeShares]


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """What `compare_models` found.

    Attributes:
        task, method, ablation: what circuits were scored on, and how.
        seed: of the resamples.
        base, tuned: names and provenance of the models.
        n_edges_total: edges of the graph.
        resamples: of the training pairs.
        delta: least factor by which an edge's share grows or shrinks to count.
        at_size: the circuits of the size asked for.
        at_faithfulness: the smallest faithful circuits; None where a model has none.
        faithfulness: of each model's circuits, by size.
        turnover: what the circuits share beside chance, and how much of that stays.
        reuse: whether nodes do the same in both models; None where it was left out.
        held_out: answers on test pairs.
        weights: how far they moved.
        modes: shares of the modes of nodes beside those of one model on other pairs, where only swaps that decide
            count; None where it was left out.
    """

    schema: ClassVar[str] = "comparison"
    file: ClassVar[str] = "compare.json"

    task: str
    method: str
    ablation: str
    seed: int
    base: dict[str, Any]
    tuned: dict[str, Any]
    n_edges_total: int
    resamples: int
    delta: float
    at_size: CircuitChange
    at_faithfulness: CircuitChange | None
    faithfulness: dict[str, dict[int, float | None]]
    turnover: Turnover
    reuse: Reuse | None
    held_out: BehaviourChange
    weights: WeightChange
    modes: dict[str, ModeShare] | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row an edge of either circuit."""
        yield from map(vars, self.at_size.points)


@checks_arguments
def compare_models(
    base: Workbench,
    tuned: Workbench,
    method: Method,
    *,
    resamples: int = 10,
    delta: float = 1.5,
    faithfulness: float = 0.8,
    sizes: Sequence[float] = SIZES,
    probe_pairs: int = 32,
    intruders: int = 10,
    seed: int = 0,
    draws: int | None = None,
    reuse: Swaps | None = None,
    halvings: int = 0,
    scored: dict[str, ScoredModel] | None = None,
) -> Comparison:
    """Compare two models of one graph on the same pairs.

    Args:
        base, tuned: the models with their pairs.
        method: how edges are scored.
        resamples: of the training pairs, for the noise floor; at least ten.
        delta: least factor by which an edge's share of the circuit's weight grows or shrinks to count.
        faithfulness: circuits are also compared at the least size that reaches this share.
        sizes: shares of the edges that are tried for it.
        probe_pairs: validation pairs that measure those.
        intruders: leading singular directions a module that are looked at; 0 looks at none.
        seed: of the resamples.
        draws: random circuits beside every overlap; None takes as many as significance needs.
        reuse: nodes that are compared and swapped; None takes the defaults.
        halvings: of the training pairs, for the null of the nodes' modes; 0 leaves it out.
        scored: scores that are known already, as "base" or "tuned"; those that are made are added.

    Raises:
        UserError: the models have different graphs or tokens, or a setting makes no sense.
    """
    one, other = base.subject, tuned.subject
    check_same_graph(one, other)
    check_same_tokens(base.data, tuned.data)
    check_same_vocabulary(one, other)
    if not delta > 1:
        raise UserError(f"delta={delta} must be a factor above 1")
    check_shares(faithfulness=faithfulness)
    if not sizes or not all(0 < size <= 1 for size in sizes) or probe_pairs < 1 or (draws is not None and draws < 1):
        raise UserError("sizes must be shares above 0 and at most 1, probe_pairs and draws at least 1")
    if 0 < halvings < LEAST:
        raise UserError(f"halvings={halvings} are too few for an interval; take at least {LEAST}, or 0 for none")
    with phase("behaviour", "Testing both on held-out pairs"):
        behaviour = answers_changed(PairBed(one, base.data.test.batches(base.data.eval_batch_size)), other)
    scored, tried = {} if scored is None else scored, {"sizes": sizes, "faithfulness": faithfulness}
    scorers = [Resampler(bench, method) for bench in (base, tuned) if halvings]  # scores of single pairs, kept
    for name, bench, scorer in zip(("base", "tuned"), (base, tuned), scorers or (None, None), strict=True):
        if name not in scored:
            with phase(f"scores_{name}", f"Scoring the {name} model on {resamples} resamples"):
                scored[name] = score_model(
                    bench, method, resamples, seed, probe_pairs=probe_pairs, scorer=scorer, **tried
                )
    sides = scored["base"], scored["tuned"]
    with phase("weights", "Measuring the weights' change"):
        parts = list(weight_changes(one, other))
        weights = WeightChange.of(parts, module_intruders(one, other, intruders))
    reused, moved = _reuse(base, tuned, sides, reuse or Swaps()), node_changes(parts)
    random = draws or draws_for(1)
    modes = None
    if halvings:
        swaps = {} if reused is None else reused.swaps
        back, there = ({name: getattr(swap, way) for name, swap in swaps.items()} for way in ("fits_back", "replaces"))
        with phase("modes", "Comparing what becomes of nodes with other halves of the pairs"):
            modes = mode_shares(base, scorers, halvings=halvings, seed=seed, fits_back=back, replaces=there)
    circuits = [Circuits.of(side.resampled, random, number) for number, side in enumerate(sides)]
    matched = sides[0].smallest, sides[1].smallest
    return Comparison(
        **facts_of(base, method, seed),
        tuned=other.origin,
        resamples=len(sides[0].resampled.resamples),
        delta=delta,
        at_size=_change(sides[0].resampled, sides[1].resampled, delta, moved, reused),
        at_faithfulness=_change(matched[0], matched[1], delta, moved, reused) if matched[0] and matched[1] else None,
        faithfulness={name: side.faithfulness for name, side in scored.items()},
        turnover=with_holm(turnover(circuits[0], circuits[1], seed)),
        reuse=reused,
        held_out=behaviour,
        weights=weights,
        modes=modes,
    )


def _reuse(base: Workbench, tuned: Workbench, sides: tuple[ScoredModel, ScoredModel], settings: Swaps) -> Reuse | None:
    """Likeness of all nodes on test pairs, and swaps of those that carry most of either circuit."""
    graph, test = base.subject.graph, base.data.test
    if not settings.pairs or graph.inputs > 1:
        return None
    shares = sum(side.resampled.circuit.shares for side in sides)
    by_writer = torch.zeros(graph.n_writers, dtype=torch.float64)
    carried = by_writer.index_add_(0, graph.writer_of, torch.as_tensor(shares))[graph.inputs :]
    order = carried.argsort(descending=True, stable=True).tolist()
    nodes = [graph.nodes[place] for place in order if float(carried[place]) > 0]
    batches = list(test.batches(base.data.eval_batch_size, order=test.spread(settings.pairs)))
    with phase("reuse", "Comparing and swapping nodes"):
        return swap_nodes(base.subject, tuned.subject, batches, nodes[: settings.nodes], settings.margin)


def _change(
    base: Resampled, tuned: Resampled, delta: float, moved: dict[str, float], reused: Reuse | None
) -> CircuitChange:
    swaps = reused.swaps if reused else {}
    fits_back = {name: swap.fits_back for name, swap in swaps.items()}
    replaces = {name: swap.replaces for name, swap in swaps.items()}
    difference = circuit_difference(base, tuned, math.log(delta), fits_back=fits_back)
    modes = node_modes(base, tuned, difference, moved, fits_back, replaces)
    return CircuitChange(
        n_edges={"base": base.count, "tuned": tuned.count},
        counts=difference.counts,
        changed=difference.changed,
        distance=difference.distance,
        floor=difference.floor,
        effect=difference.effect,
        edges={label: difference.names(label) for label in LABELS[1:]},
        nodes={mode: [n for n, m in modes.items() if m == mode] for mode in sorted({*modes.values()} - {"absent"})},
        points=_points(base, tuned, difference),
    )


def _points(base: Resampled, tuned: Resampled, difference: CircuitDifference) -> list[EdgeShares]:
    shares = torch.stack([base.circuit.shares, tuned.circuit.shares])
    chosen = (base.kept | tuned.kept).nonzero()[:, 0]
    ranked = chosen[shares[:, chosen].max(0).values.argsort(descending=True)][:SHOWN].tolist()
    return [
        EdgeShares(
            difference.graph.edge_name(edge),
            float(shares[0, edge]),
            float(shares[1, edge]),
            LABELS[int(difference.labels[edge])],
        )
        for edge in ranked
    ]
