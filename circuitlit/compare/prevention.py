"""Does it help to freeze the nodes that the conflict index names, before tuning? Against equally many random nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.compare.effects import node_weights
from circuitlit.compare.generality import conflict_index, conflicting
from circuitlit.compare.injection import expected_changes
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.matched import matched_nodes, mean_overlap
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.finetune import Examples, answer_log_probs
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.slices import withheld

Tune = Callable[[Subject, Mapping[str, Examples], int, Sequence[str]], Subject]
ARMS = ("nothing", "conflict", "random")


@dataclass(frozen=True)
class Prevention:
    """What `compare_freezing` found; losses are of held-out answers, nats, by task.

    Attributes:
        on: the task tuned on.
        nodes: those of conflict.
        withheld: keys and values that are not frozen, a part of whose heads is.
        random_nodes: frozen instead, a set a seed.
        overlap: mean share of the nodes that a random set holds, too.
        conflict: of the expected change with the other tasks' circuits.
        seeds, steps: of the tuning.
        loss_before: of the base model.
        loss_change: with nothing, the nodes of conflict and random ones frozen.
        by_seed: the same for every seed.
        spared: by freezing the nodes of conflict instead of nothing, or instead of random ones; each time the intervals
            of all tasks hold at once (Bonferroni).
    """

    on: str
    nodes: list[str]
    withheld: list[str]
    random_nodes: list[list[str]]
    overlap: float
    conflict: float
    seeds: list[int]
    steps: int | None
    loss_before: dict[str, Estimate]
    loss_change: dict[str, dict[str, Estimate]]
    by_seed: dict[str, dict[str, list[float]]]
    spared: dict[str, dict[str, Estimate]]


@checks_arguments
def compare_freezing(
    base: Subject,
    examples: Mapping[str, Mapping[str, Examples]],
    circuits: Mapping[str, Circuit],
    tune: Tune,
    tune_on: str,
    *,
    nodes: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    batch_size: int = 16,
) -> Prevention:
    """Tune on one task with nothing, the conflicting nodes, or random ones frozen, and test on all tasks.

    The nodes are named before any tuning: the importance of a node for the other tasks, and the gradient of the tuning
    loss, each as shares, the smaller of the two.

    Args:
        base: the model before tuning.
        examples: of every task, by split.
        circuits: each task's, on the base model.
        tune: a tuned copy of a model, given its examples by split, a seed, and the nodes to freeze.
        tune_on: the task to tune on.
        nodes: that are frozen; as many random ones beside them.
        seeds: of the tuning and of the random nodes; with one nothing is said to be beyond chance.
        steps: of the tuning, for the result.
        batch_size: pairs measured at once.

    Raises:
        UserError: an unknown task to tune on.
    """
    if tune_on not in examples:
        raise UserError(f"tune_on={tune_on} is not among the tasks {', '.join(examples)}; name one of them")
    others = [name for name in examples if name != tune_on]
    train = list(examples[tune_on]["train"].chosen.batches(batch_size))
    importance, moved = _importance([circuits[name] for name in others]), expected_changes(base, train)
    named = conflicting(importance, moved, nodes)
    groups = {name: _groups(examples[name]["test"]) for name in examples}
    before = {name: _losses(batch_size, base, examples[name]["test"]) for name in examples}
    damage: dict[str, dict[str, list[Tensor]]] = {arm: {name: [] for name in examples} for arm in ARMS}
    sets = [matched_nodes(base.graph, named, 1, int(seed))[0] for seed in seeds]
    for seed, random in zip(seeds, sets, strict=True):
        for arm, frozen in (("nothing", []), ("conflict", named), ("random", random)):
            tuned = tune(base, examples[tune_on], int(seed), frozen)
            for name in examples:
                damage[arm][name].append(_losses(batch_size, tuned, examples[name]["test"]) - before[name])

    def mean(values: Float[Tensor, "*seed pair"], name: str, together: int = 1) -> Estimate:
        return mean_estimate(values, groups[name], together=together)

    stacked = {arm: {name: torch.stack(rows) for name, rows in own.items()} for arm, own in damage.items()}
    return Prevention(
        on=tune_on,
        nodes=named,
        withheld=withheld(base.graph, named),
        random_nodes=sets,
        overlap=mean_overlap(named, sets),
        conflict=conflict_index(importance, moved),
        seeds=list(seeds),
        steps=steps,
        loss_before={name: mean(values, name) for name, values in before.items()},
        loss_change={arm: {name: mean(v, name) for name, v in own.items()} for arm, own in stacked.items()},
        by_seed={arm: {name: v.mean(1).tolist() for name, v in own.items()} for arm, own in stacked.items()},
        spared={
            arm: {name: mean(stacked[arm][name] - stacked["conflict"][name], name, len(examples)) for name in examples}
            for arm in ("nothing", "random")
        },
    )


def _importance(circuits: Sequence[Circuit]) -> dict[str, float]:
    """Mean share over tasks of each node in its circuit's weight."""
    total: dict[str, float] = {}
    for own in circuits:
        nodes = node_weights(own)
        whole = sum(nodes.values()) or 1.0
        for node, value in nodes.items():
            total[node] = total.get(node, 0.0) + value / whole / len(circuits)
    return total


@torch.no_grad()
def _losses(batch_size: int, subject: Subject, examples: Examples) -> Float[Tensor, "pair"]:
    """Loss on held-out answers, nats a pair."""
    batches = examples.chosen.batches(batch_size)
    return torch.cat([-answer_log_probs(subject.model, b.to(subject.device)).sum(-1).cpu() for b in batches])


def _groups(examples: Examples) -> Int[Tensor, "pair"]:
    """Which held-out answers share a sentence."""
    return torch.cat([batch.group for batch in examples.chosen.batches(len(examples.chosen))])
