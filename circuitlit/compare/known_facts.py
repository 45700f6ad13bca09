"""What a model knows (facts, language, reasoning), and which heads look facts up, beside random heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from circuitlit.compare.effects import PairBed
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import benjamini_hochberg, enough_draws, paired_p, with_holm
from circuitlit.graph.nodes import node_name
from circuitlit.heads.causal import Behaviour, causal_check, metric_of_pairs
from circuitlit.heads.knowledge import READ, ROLES, blocking, role_effects
from circuitlit.heads.path_patching import PatchBed
from circuitlit.model import Subject
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.tasks import EncodedPairs, PairsModule

LEAST_PAIRS = 4


@dataclass(frozen=True)
class LookupHead:
    """A head of a role: the metric lost without it, that as a share of the metric, its attention, q of all tried."""

    head: str
    drop: Estimate
    share: float
    attention: float | None
    q: float


@dataclass(frozen=True)
class LookupHeads:
    """The heads of a role, how many were tried, and their check on test pairs beside random heads (None: no head)."""

    heads: list[LookupHead]
    tried: int
    check: dict[str, Any] | None


@dataclass(frozen=True)
class KnownTask:
    """One task: its pack, share of pairs answered, answered pairs by split and by group, and its heads by role."""

    pack: str
    n_pairs: int
    accuracy: Estimate
    answered: dict[str, int]
    groups: dict[str, dict[str, int]]
    roles: dict[str, LookupHeads] | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Knowledge(Result):
    """What `measure_knowledge` found.

    Attributes:
        model, seed, settings: what was tested, and how heads were chosen.
        tasks: by name, those of all packs.
    """

    schema: ClassVar[str] = "knowledge"
    file: ClassVar[str] = "knowledge.json"

    model: str
    seed: int
    settings: dict[str, Any]
    tasks: dict[str, KnownTask]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a task."""
        for name, task in self.tasks.items():
            yield {"pack": task.pack, "task": name, "n_pairs": task.n_pairs, "accuracy": task.accuracy.value}


def measure_knowledge(
    subject: Subject,
    packs: Mapping[str, Mapping[str, PairsModule]],
    *,
    pairs: int = 32,
    candidates: int = 40,
    top: int = 5,
    least: float = 0.02,
    alpha: float = 0.05,
    draws: int | None = None,
    seed: int = 0,
) -> Knowledge:
    """Test a model on packs of tasks, and look for the heads that look facts up.

    Args:
        subject: the model.
        packs: encoded pairs by pack and task.
        pairs: answered pairs that heads are sought on, and checked on.
        candidates: heads tried for each role.
        top: most heads of a role.
        alpha: false discovery rate.
        least: smallest share of the metric that a head takes away.
        draws: random sets of heads; None takes as many as significance needs.
        seed: of the pairs, for the result.

    Raises:
        UserError: no task at all.
    """
    if not any(packs.values()):
        raise UserError("packs hold no task; give some")
    settings = {"pairs": pairs, "candidates": candidates, "top": top, "alpha": alpha, "least": least, "draws": draws}
    found = {}
    for pack, tasks in packs.items():
        for name, data in tasks.items():
            with phase(f"task_{name}", f"{pack}: {name}"):
                found[name] = _task(pack, data, subject, settings)
    return Knowledge(model=subject.name, seed=seed, settings=settings, tasks=with_holm(found))


def _task(pack: str, data: PairsModule, subject: Subject, settings: dict[str, Any]) -> KnownTask:
    """How well the model does a task, by group of pairs; and the heads, where the task has subjects and relations."""
    splits = data.splits
    accuracy, shared, kept, groups = [], [], {}, {}
    for name in ("train", "test"):
        pairs: EncodedPairs = getattr(data, name)
        outcome = PairBed(subject, pairs.batches(data.eval_batch_size)).full
        right = outcome.accuracy.bool().tolist()
        kept[name] = [place for place, good in enumerate(right) if good]
        accuracy.append(outcome.accuracy)
        shared.append(outcome.group + sum(map(len, shared)))
        for pair, good in zip(getattr(splits, name), right, strict=True):
            groups.setdefault(pair.template.split("/")[0] or "all", []).append(good)
    roles, enough = None, min(len(rows) for rows in kept.values()) >= LEAST_PAIRS
    if {"subject", "relation"} <= set(splits.role_names) and enough:
        train, test = (_bed(data, subject, getattr(data, name), rows, settings["pairs"]) for name, rows in kept.items())
        wanted = {key: value for key, value in settings.items() if key != "pairs"}
        roles = lookup_heads(train, test, splits.role_names, **wanted)
    return KnownTask(
        pack,
        sum(map(len, accuracy)),
        mean_estimate(torch.cat(accuracy), torch.cat(shared)),
        {name: len(rows) for name, rows in kept.items()},
        {name: {"n": len(own), "answered": sum(own)} for name, own in sorted(groups.items())},
        roles,
    )


def _bed(data: PairsModule, subject: Subject, pairs: EncodedPairs, rows: Sequence[int], most: int) -> PatchBed:
    """Answered pairs, spread evenly over the split."""
    step = max(1, len(rows) // most)
    chosen = list(rows)[::step][:most]
    return PatchBed.build(subject, pairs.batches(data.eval_batch_size, order=chosen))


def lookup_heads(
    bed: PatchBed,
    test: PatchBed,
    role_names: Sequence[str],
    *,
    candidates: int = 40,
    top: int = 5,
    least: float = 0.02,
    alpha: float = 0.05,
    draws: int | None = None,
) -> dict[str, LookupHeads]:
    """Heads of each role, chosen on training pairs and checked on test pairs against random heads of their layers."""
    found, draws = {}, draws or enough_draws(len(ROLES))
    for role in ROLES:
        tried = role_effects(bed, role_names, role, candidates)
        q = benjamini_hochberg([paired_p(entry.drop, entry.groups) for entry in tried])
        real = [
            (entry, value) for entry, value in zip(tried, q, strict=True) if value <= alpha and entry.share >= least
        ][:top]
        check = None
        if real:
            heads = [entry.head for entry, _ in real]
            check = asdict(
                causal_check(_behaviour(test, role_names, role), test.graph, heads, draws, groups=test.groups)
            )
            check["heads"] = [node_name(*head) for head in heads]
        listed = [LookupHead(e.name, e.estimate, e.share, e.attention, value) for e, value in real]
        found[role] = LookupHeads(listed, len(tried), check)
    return found


def _behaviour(bed: PatchBed, role_names: Sequence[str], role: str) -> Behaviour:
    if role == "retrieval":
        return metric_of_pairs(bed, "interchange")
    return blocking(bed.heads, bed.batches, role_names, READ[role])
