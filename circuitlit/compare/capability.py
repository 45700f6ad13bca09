"""What tuning gained and lost, and the smallest set of nodes that carries a gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuitlit.compare.effects import gain_share
from circuitlit.evaluate import Estimate, paired_difference
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import above_chance, holm, paired_p
from circuitlit.finetune.behaviour import behaviour_change
from circuitlit.objective import Outcome

VERDICTS = ("gained", "improved", "unchanged", "degraded")


@dataclass(frozen=True)
class Capability:
    """Base against tuned on one task.

    Attributes:
        verdict: "gained" where only the tuned model is above chance and better, "improved" where it is better,
            "degraded" where it is worse, else "unchanged".
        score: "accuracy", or "metric" where accuracy cannot tell the models apart on this task.
        base, tuned, change: the score, and its paired change.
        p, p_holm: two-sided paired test of no change on new sentences (see `paired_p`), and the same adjusted for all
            tasks and both scores.
        base_above_chance, tuned_above_chance: Holm-adjusted one-sided tests of each model against chance.
        metric_change: change of the task's metric, with its own interval.
        n_pairs: pairs.
    """

    verdict: str
    score: str
    base: Estimate
    tuned: Estimate
    change: Estimate
    p: float
    p_holm: float
    base_above_chance: float
    tuned_above_chance: float
    metric_change: Estimate
    n_pairs: int


def capabilities(
    outcomes: dict[str, tuple[Outcome, Outcome]], chance: float, min_effect: float, alpha: float = 0.05
) -> dict[str, Capability]:
    """Judge every task, with p-values adjusted (Holm) over tasks and scores.

    Accuracy decides where its adjusted test is significant, else the metric; a change counts if it is significant and
    exceeds `min_effect` (a share of pairs for accuracy; for the metric a share of the larger of both models' means).

    Args:
        outcomes: base's and tuned model's outcome on each task's held-out pairs.
        chance: accuracy of guessing.
        min_effect: smallest change that counts.
        alpha: level of all tests.
    """
    names = list(outcomes)
    changes = {name: behaviour_change(*outcomes[name]) for name in names}
    p = [changes[name].accuracy_p for name in names]
    p += [paired_p(tuned.metric - base.metric, base.group) for base, tuned in outcomes.values()]
    adjusted = holm(p)
    every = [outcome for pair in outcomes.values() for outcome in pair]
    levels = holm([above_chance(outcome.accuracy, chance, outcome.group) for outcome in every])
    found = {}
    for place, name in enumerate(names):
        base, tuned = outcomes[name]
        by_metric = adjusted[place] > alpha and adjusted[len(names) + place] <= alpha
        before, after = (o.metric if by_metric else o.accuracy for o in (base, tuned))
        change = paired_difference(after, before, base.group)
        at = len(names) + place if by_metric else place
        scale = max(abs(float(before.mean())), abs(float(after.mean()))) if by_metric else 1.0
        real = adjusted[at] <= alpha and change.agrees and abs(change.value or 0.0) > min_effect * scale
        able = levels[2 * place], levels[2 * place + 1]
        found[name] = Capability(
            _verdict(real, change.value or 0.0, able[0] <= alpha, able[1] <= alpha),
            "metric" if by_metric else "accuracy",
            mean_estimate(before, base.group),
            mean_estimate(after, base.group),
            change,
            p[at],
            adjusted[at],
            *able,
            changes[name].metric_change,
            len(base.accuracy),
        )
    return found


def _verdict(real: bool, change: float, base_able: bool, tuned_able: bool) -> str:
    if not real:
        return "unchanged"
    if change < 0:
        return "degraded"
    return "gained" if tuned_able and not base_able else "improved"


def greedy_order(base: Outcome, single: dict[str, Outcome], sign: float) -> list[str]:
    """Nodes by what each brings of the gain on its own, most first.

    Args:
        base: the base model.
        single: the base model with one node of the tuned model.
        sign: +1 where the tuned model's metric is higher, -1 where it is lower.
    """
    gain = {node: sign * float((outcome.metric - base.metric).mean()) for node, outcome in single.items()}
    return sorted(gain, key=lambda node: -gain[node])


def smallest_prefix(
    order: Sequence[str], base: Outcome, tuned: Outcome, moved: Callable[[Sequence[str]], Outcome], share: float
) -> tuple[list[str] | None, dict[int, float | None]]:
    """The shortest prefix of an order whose gain share reaches `share`, and the share of each prefix looked at.

    Sizes grow by about a quarter until one passes, then every size after the last that failed is tried in turn.

    Source: the acquisition set by cross-model patching, Prakash et al. (arXiv 2402.14811); the greedy search is ours.
    """
    seen: dict[int, float | None] = {}

    def passes(size: int) -> bool:
        value = gain_share(base, tuned, moved(order[:size])).value
        seen[size] = value
        return value is not None and value >= share

    size, failed = 1, 0
    while not passes(size):
        if size == len(order):
            return None, seen
        failed, size = size, min(len(order), max(size + 1, size + size // 4))
    for shorter in range(failed + 1, size):
        if passes(shorter):
            return list(order[:shorter]), seen
    return list(order[:size]), seen
