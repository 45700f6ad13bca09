"""What tuning gained and lost over several tasks, and the smallest set of nodes that carries each gain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from circuitlit.arguments import check_shares, checks_arguments
from circuitlit.compare.capability import Capability, capabilities, greedy_order, smallest_prefix
from circuitlit.compare.effects import PairBed, gain_share, plain_logits
from circuitlit.compare.transplant import Transplant, everything
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.matched import matched_nodes, mean_overlap
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import enough_draws, rank_p, until_clear, with_holm
from circuitlit.model import Subject
from circuitlit.model.slices import READOUT
from circuitlit.objective import Outcome
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.tasks import EncodedPairs, PairsModule

Way = Literal["activations", "weights"]


@dataclass(frozen=True)
class Acquisition:
    """The shortest set of nodes that carries enough of a gain: chosen on validation, measured on test pairs.

    Attributes:
        order: all nodes by what each brings of the gain on its own, most first.
        tried: share of the gain by the number of nodes, on validation pairs.
        nodes: the set; None where no set carries enough.
        by: what is moved from the tuned model into the base.
        gap: tuned minus base on validation pairs, in the metric's unit.
        gain_share: of the set, on test pairs.
        random_gain_share: of random sets of its size, kinds and layers.
        rank_p, p_holm: rank of the set among these, and the same corrected for all gains.
        overlap: mean share of the set that a random one holds, too.
        fixed: members that random sets share (input and readout have no counterpart).
    """

    order: list[str]
    tried: dict[int, float | None]
    nodes: list[str] | None
    by: Way
    gap: Estimate
    gain_share: Estimate | None = None
    random_gain_share: Estimate | None = None
    rank_p: float | None = None
    p_holm: float | None = None
    overlap: float | None = None
    fixed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, repr=False)
class Capabilities(Result):
    """What `compare_capabilities` found.

    Attributes:
        base, tuned: names and provenance of the models.
        settings: levels, and what counted as a gain.
        seed: of the random sets.
        tasks: verdict on each task.
        acquisition: the nodes that carry each gain.
    """

    schema: ClassVar[str] = "capabilities"
    file: ClassVar[str] = "capabilities.json"

    base: dict[str, Any]
    tuned: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    tasks: dict[str, Capability]
    acquisition: dict[str, Acquisition]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a task."""
        for name, task in self.tasks.items():
            scores = {key: getattr(task, key).value for key in ("base", "tuned", "change")}
            found = self.acquisition.get(name)
            yield {"task": name, "verdict": task.verdict, "score": task.score, **scores, "p_holm": task.p_holm} | {
                "nodes": found and found.nodes
            }


@checks_arguments
def compare_capabilities(
    base: Subject,
    tuned: Subject,
    tasks: Mapping[str, PairsModule],
    *,
    chance: float = 0.02,
    min_effect: float = 0.05,
    alpha: float = 0.05,
    share: float = 0.8,
    by: Way = "activations",
    pairs: int = 16,
    draws: int | None = None,
    seed: int = 0,
) -> Capabilities:
    """Judge every task, and look for the nodes that carry each gain.

    Args:
        base, tuned: two models of one graph.
        tasks: encoded pairs by the task's name.
        chance: accuracy of guessing.
        min_effect: smallest change that counts: share of pairs; for the metric share of its mean.
        alpha: level of all tests.
        share: of a gain that the set has to carry.
        by: what is moved from tuned to base.
        pairs: validation pairs that choose the set.
        draws: at most so many random sets; None takes as many as significance needs.
        seed: of the random sets.

    Raises:
        UserError: the models have different graphs, or a setting is out of its range.
    """
    check_shares(chance=chance, min_effect=min_effect, alpha=alpha, share=share)
    if not tasks or pairs < 1:
        raise UserError(f"compare_capabilities needs at least one task, and pairs={pairs} of at least 1")
    move, outcomes = Transplant(base, tuned), {}
    for name, data in tasks.items():
        with phase(f"behaviour_{name}", f"Testing both on {name}"):
            bed = _bed(data, data.test, move)
            outcomes[name] = bed.full, bed.measure(lambda batch: plain_logits(tuned, batch))
    found = capabilities(outcomes, chance, min_effect, alpha)
    most, acquired = draws or enough_draws(len(tasks)), {}
    for name, capability in found.items():
        if capability.verdict in ("gained", "improved"):
            with phase(f"circuit_{name}", f"Looking for the nodes that carry the gain on {name}"):
                acquired[name] = _acquisition(tasks[name], move, share, by, pairs, most, seed)
    levels = {"chance": chance, "min_effect": min_effect, "alpha": alpha}
    return Capabilities(
        base=base.origin,
        tuned=tuned.origin,
        settings=levels | {"share": share, "by": by, "pairs": pairs, "draws": draws},
        seed=seed,
        tasks=found,
        acquisition=with_holm(acquired),
    )


def _bed(data: PairsModule, pairs: EncodedPairs, move: Transplant, most: int | None = None) -> PairBed:
    """All pairs, or some of as many sentences as possible."""
    return PairBed(move.host, pairs.batches(data.eval_batch_size, order=sorted(pairs.spread(most))))


def _acquisition(
    data: PairsModule, move: Transplant, share: float, by: Way, pairs: int, draws: int, seed: int
) -> Acquisition:
    choose, test = _bed(data, data.to_choose_on, move, pairs), _bed(data, data.test, move)
    target = choose.measure(lambda batch: plain_logits(move.donor, batch))

    def moved(bed: PairBed, nodes: Sequence[str]) -> Outcome:
        if by == "activations":
            return bed.measure(lambda batch: move.logits(nodes, batch.clean, batch.positions))
        with move.weights(nodes) as copy:
            return bed.measure(lambda batch: plain_logits(copy, batch))

    gap = mean_estimate(target.metric - choose.full.metric, target.group)
    single = {node: moved(choose, [node]) for node in everything(move.graph)}
    order = greedy_order(choose.full, single, 1.0 if (gap.value or 0.0) >= 0 else -1.0)
    nodes, tried = smallest_prefix(order, choose.full, target, lambda some: moved(choose, some), share)
    if nodes is None:
        return Acquisition(order, tried, nodes, by, gap)
    donor = test.measure(lambda batch: plain_logits(move.donor, batch))
    sets = matched_nodes(move.graph, nodes, draws, seed)
    fixed = [node for node in nodes if node in ("input", READOUT)]
    own = gain_share(test.full, donor, moved(test, nodes))
    tries = (gain_share(test.full, donor, moved(test, [*fixed, *members])).value for members in sets)
    known = [value for value in until_clear([own.value], tries, lambda value: [value]) if value is not None]
    return Acquisition(
        order,
        tried,
        nodes,
        by,
        gap,
        own,
        mean_of(known) if known else None,
        rank_p(own.value, known) if own.value is not None else None,
        overlap=mean_overlap([node for node in nodes if node not in fixed], sets),
        fixed=fixed,
    )
