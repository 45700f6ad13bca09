"""Why a tuned model got worse at some tasks: where its change meets circuits, and what reverting brings back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitlit.compare.capability import Capability, capabilities
from circuitlit.compare.effects import PairBed, gain_share, node_weights, plain_logits
from circuitlit.compare.generality import conflict_index, conflicting, shuffled_conflict
from circuitlit.compare.transplant import Transplant
from circuitlit.compare.weight_figures import node_changes
from circuitlit.compare.weights import weight_changes
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.matched import matched_nodes, mean_overlap
from circuitlit.evaluate.statistics import mean_of
from circuitlit.evaluate.testing import rank_p, until_clear
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.tasks.pair import Batch


@dataclass(frozen=True)
class Conflict:
    """How much a change of weights collides with a circuit (0 to 1), and by chance, with its nodes shuffled."""

    index: float
    by_chance: Estimate
    rank_p: float
    p_holm: float | None = None


@dataclass(frozen=True)
class Reverted:
    """A damaged task with its conflicting nodes at the base's weights.

    Attributes:
        nodes: that were put back.
        withheld: keys and values that stay the tuned model's, a part of whose heads is put back.
        recovered, random_recovered: share of the loss that comes back, by these nodes and by random ones like them.
        rank_p, p_holm: rank of it among theirs.
        overlap: mean share of the nodes that a random set holds, too.
        gain_lost, random_gain_lost: share of each gained task's gain that it costs.
    """

    nodes: list[str]
    withheld: list[str]
    recovered: Estimate
    random_recovered: Estimate | None
    rank_p: float | None
    overlap: float
    gain_lost: dict[str, Estimate]
    random_gain_lost: dict[str, Estimate]
    p_holm: float | None = None


@dataclass(frozen=True)
class Damage:
    """What tuning did to the tasks.

    Attributes:
        tuned: where the tuned model is from.
        tasks: whether each was gained, improved, kept or damaged.
        mean_change: of the metric, over tasks.
        conflict: of the change with each task's circuit.
        reverted: of each damaged task.
    """

    tuned: dict[str, Any]
    tasks: dict[str, Capability]
    mean_change: float
    conflict: dict[str, Conflict]
    reverted: dict[str, Reverted]


@dataclass(frozen=True)
class Levels:
    """What counts, and how many nodes are put back: the settings of `measure_generality`, and its random draws."""

    chance: float
    min_effect: float
    alpha: float
    revert: int
    draws: int
    seed: int


def find_damage(
    base: Subject,
    tuned: Subject,
    circuits: Mapping[str, Circuit],
    batches: Mapping[str, Sequence[Batch]],
    levels: Levels,
) -> Damage:
    """Judge every task, and put back the nodes that did the damage.

    Args:
        base, tuned: two models of one graph.
        circuits: each task's, in the base.
        batches: its test pairs.
        levels: what counts.
    """
    beds = {name: PairBed(base, list(own)) for name, own in batches.items()}
    after = {name: bed.measure(lambda batch: plain_logits(tuned, batch)) for name, bed in beds.items()}
    outcomes = {name: (bed.full, after[name]) for name, bed in beds.items()}
    judged = capabilities(outcomes, levels.chance, levels.min_effect, levels.alpha)
    moved = node_changes(list(weight_changes(base, tuned)))
    back = Transplant(tuned, base)
    weights = {name: node_weights(own) for name, own in circuits.items()}
    means = [float((after[name].metric - beds[name].full.metric).mean()) for name in beds]
    return Damage(
        tuned=tuned.origin,
        tasks=judged,
        mean_change=sum(means) / len(means),
        conflict={name: _conflict(levels, own, moved) for name, own in weights.items()},
        reverted={
            name: _revert(levels, name, conflicting(weights[name], moved, levels.revert), beds, after, judged, back)
            for name, capability in judged.items()
            if capability.verdict == "degraded"
        },
    )


def _conflict(levels: Levels, importance: dict[str, float], moved: dict[str, float]) -> Conflict:
    own = conflict_index(importance, moved)
    chance = shuffled_conflict(importance, moved, max(200, levels.draws), levels.seed)
    return Conflict(own, mean_of(chance), rank_p(own, chance))


def _revert(
    levels: Levels,
    name: str,
    nodes: list[str],
    beds: dict[str, PairBed],
    after: dict[str, Outcome],
    judged: dict[str, Capability],
    back: Transplant,
) -> Reverted:
    """What a damaged task gets back with some nodes at base weights, and what that costs the gains."""
    gained = [other for other, capability in judged.items() if capability.verdict in ("gained", "improved")]

    def reverted(members: Sequence[str]) -> dict[str, Estimate]:
        found = {}
        with back.weights(members) as copy:
            for other in (name, *gained):
                outcome = beds[other].measure(lambda batch: plain_logits(copy, batch))
                found[other] = gain_share(after[other], beds[other].full, outcome)
        return found

    def known(on: str) -> list[float]:
        return [value for found in others if (value := found[on].value) is not None]

    own = reverted(nodes)
    value = own[name].value
    sets = matched_nodes(back.graph, nodes, levels.draws, levels.seed)
    others = until_clear([value], map(reverted, sets), lambda one: [one[name].value])
    random = {on: mean_of(known(on)) if known(on) else Estimate() for on in (name, *gained)}
    return Reverted(
        nodes=nodes,
        withheld=withheld(back.graph, nodes),
        recovered=own[name],
        random_recovered=random[name] if known(name) else None,
        rank_p=None if value is None else rank_p(value, known(name)),
        overlap=mean_overlap(nodes, sets),
        gain_lost={other: own[other] for other in gained},
        random_gain_lost={other: random[other] for other in gained},
    )
