"""What a model knows (facts, language, reasoning): the circuits, and the nodes that carry it, beside random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from circuitlit.arguments import check_resamples, check_shares, checks_arguments
from circuitlit.compare.effects import PairBed
from circuitlit.compare.knowledge_circuits import (
    Drawn,
    KnowledgeCircuit,
    KnowledgeOverlap,
    knowledge_circuit,
    knowledge_overlaps,
)
from circuitlit.discover import eap_ig
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import with_holm
from circuitlit.evaluate.trust.identity import identity_of, identity_of_model, identity_of_pairs
from circuitlit.files import file_name
from circuitlit.heads.lookup import LookupHeads, lookup_heads
from circuitlit.heads.path_patching import PatchBed
from circuitlit.model import Subject
from circuitlit.progress import phase, say
from circuitlit.result import Result
from circuitlit.store import opened
from circuitlit.tasks import EncodedPairs, PairsModule
from circuitlit.tasks.encode import encode
from circuitlit.tasks.splits import END, OTHER


@dataclass(frozen=True)
class KnownTask:
    """One task: its pack, share of pairs answered, answered pairs by split and group, nodes by role, circuit.

    `reason` says why there are neither: the model does not do the task, or answers too few pairs.
    """

    pack: str
    n_pairs: int
    accuracy: Estimate
    answered: dict[str, int]
    groups: dict[str, dict[str, int]]
    roles: dict[str, LookupHeads] | None
    reason: str | None = None
    circuit: KnowledgeCircuit | None = None


@dataclass(frozen=True)
class Measured:
    """A task with the edges of its circuit, if it has one."""

    task: KnownTask
    drawn: Drawn | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Knowledge(Result):
    """What `measure_knowledge` found.

    Attributes:
        model, seed, settings: what was tested, and how heads were chosen.
        tasks: by name, those of all packs.
        overlaps: of the circuits of every two tasks, and of every two packs.
    """

    schema: ClassVar[str] = "knowledge"
    file: ClassVar[str] = "knowledge.json"

    model: str
    seed: int
    settings: dict[str, Any]
    tasks: dict[str, KnownTask]
    overlaps: list[KnowledgeOverlap] = field(default_factory=list)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a task."""
        for name, task in self.tasks.items():
            yield {"pack": task.pack, "task": name, "n_pairs": task.n_pairs, "accuracy": task.accuracy.value}


@checks_arguments
def measure_knowledge(
    subject: Subject,
    packs: Mapping[str, Mapping[str, PairsModule]],
    *,
    pairs: int = 56,
    candidates: int = 40,
    top: int = 5,
    least: float = 0.02,
    alpha: float = 0.05,
    draws: int | None = None,
    answered: Literal["says", "prefers"] = "says",
    least_pairs: int = 50,
    least_groups: int = 8,
    heads: bool = True,
    circuits: bool = True,
    resamples: int = 100,
    method: Method | None = None,
    sparsity: float = 0.95,
    min_accuracy: Mapping[str, float] | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
) -> Knowledge:
    """Test a model on packs of tasks; of those that it does, find the circuits and the nodes that carry them.

    Args:
        subject: the model.
        packs: encoded pairs by pack and task.
        pairs: answered pairs that heads are sought on, and checked on.
        candidates: heads tried for each role.
        top: most heads of a role.
        alpha: false discovery rate.
        least: smallest share of the metric that a head takes away.
        draws: random sets of heads; None takes as many as significance needs, corrected for a task's roles.
        answered: pairs count whose answer the model "says", or "prefers" to the wrong answer.
        least_pairs, least_groups: answered pairs, and sentences or facts among them, that training and test each need.
        heads, circuits: what is sought.
        resamples: of the training sentences, for the intervals of what circuits share.
        method: how edges are scored; None takes EAP-IG.
        sparsity: share of edges that a circuit lacks.
        min_accuracy: share of right answers that each task asks for; 0 where none is given.
        folder: keeps every task, so that a call that was stopped goes on; None keeps nothing.
        seed: of the pairs, for the result.

    Raises:
        UserError: no task at all, one name in two packs, an unknown one in `min_accuracy`, a share that is none, or a
            single resample.
    """
    if not any(packs.values()):
        raise UserError("packs hold no task; give some")
    labels = [name for tasks in packs.values() for name in tasks]
    twice = next((name for name in labels if labels.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two packs have a task called '{twice}'; give each a name of its own")
    check_resamples(resamples)
    check_shares(alpha=alpha, least=least, sparsity=sparsity)
    unknown = next((name for name in min_accuracy or {} if name not in labels), None)
    if unknown is not None:
        raise UserError(f"min_accuracy: packs have no task '{unknown}'; choose from {', '.join(labels)}")
    settings = {"pairs": pairs, "candidates": candidates, "top": top, "alpha": alpha, "least": least, "draws": draws}
    method = method or Method.of(eap_ig, steps=5)
    bars = {"answered": answered, "least_pairs": least_pairs, "least_groups": least_groups}
    sought = {"heads": heads, "circuits": circuits, "resamples": resamples, "sparsity": sparsity, "seed": seed}
    of_model, found = identity_of_model(subject), {}
    with opened(folder) as store:
        for pack, tasks in packs.items():
            for name, data in tasks.items():
                own = settings | bars | sought | {"min_accuracy": (min_accuracy or {}).get(name, 0.0)}
                known_by = of_model | identity_of_pairs(data) | own | {"pack": pack, "method": identity_of(method)}
                known_by["batches"] = [data.batch_size, data.eval_batch_size]  # each has shuffled circuits of its own
                part = "--".join(map(file_name, (pack, name)))
                with phase(f"task_{name}", f"{pack}: {name}"):
                    kept = store.known(part, known_by, Measured)
                    if kept is not None:
                        say("taken from an earlier run")
                    work = partial(_measured, pack, data, subject, method, own)
                    found[name] = kept or store.made(part, known_by, Measured, work)
    drawn = {name: one.drawn for name, one in found.items() if one.drawn is not None}
    with phase("overlaps", "Comparing the circuits"):
        overlaps = with_holm(knowledge_overlaps(drawn, subject.graph, packs, seed)) if len(drawn) > 1 else []  # type: ignore[arg-type]
    return Knowledge(
        model=subject.name,
        seed=seed,
        settings=settings | {"method": method.name, "sparsity": sparsity, **bars},
        tasks={name: one.task for name, one in found.items()},
        overlaps=overlaps,
    )


def _measured(pack: str, data: PairsModule, subject: Subject, method: Method, settings: Mapping[str, Any]) -> Measured:
    """Ask the model a task's pairs; where it does the task, find its circuit and the nodes that carry it."""
    task, kept = _asked(pack, data, subject, settings)
    drawn = None
    if task.reason is None and settings["circuits"]:
        bench = Workbench.build(subject, data, settings["sparsity"], seed=settings["seed"])
        circuit, drawn = knowledge_circuit(
            bench, method, kept["train"], kept["test"], settings["resamples"], settings["seed"]
        )
        task = replace(task, circuit=circuit)
    if task.reason is None and settings["heads"]:
        task = with_holm(replace(task, roles=_roles(data, subject, kept, settings)))
    return Measured(task, drawn)


def _asked(
    pack: str, data: PairsModule, subject: Subject, settings: Mapping[str, Any]
) -> tuple[KnownTask, dict[str, list[int]]]:
    """How well the model does a task, by group of pairs; and the pairs that it answers, by split."""
    splits = data.splits
    accuracy, shared, kept, groups = [], [], {}, {}
    for name in ("train", "test"):
        pairs: EncodedPairs = getattr(data, name)
        outcome = PairBed(subject, pairs.batches(data.eval_batch_size)).full
        right = (outcome.accuracy if settings["answered"] == "says" else outcome.margin > 0).bool().tolist()
        kept[name] = [place for place, good in enumerate(right) if good]
        accuracy.append(outcome.accuracy)
        shared.append(outcome.group + sum(map(len, shared)))
        for pair, good in zip(getattr(splits, name), right, strict=True):
            groups.setdefault(pair.template.split("/")[0] or "all", []).append(good)
    share = mean_estimate(torch.cat(accuracy), torch.cat(shared))
    few = _too_few(data, kept, settings)
    if share.value is not None and share.value < settings["min_accuracy"]:
        few = f"the model does not do the task: accuracy {share}, {settings['min_accuracy']:g} is asked for"
    counts = {name: {"n": len(own), "answered": sum(own)} for name, own in sorted(groups.items())}
    answered = {name: len(rows) for name, rows in kept.items()}
    return KnownTask(pack, sum(map(len, accuracy)), share, answered, counts, None, few), kept


def _too_few(data: PairsModule, kept: Mapping[str, Sequence[int]], bars: Mapping[str, Any]) -> str | None:
    """Why nothing may rest on the answered pairs, or None; of all inputs there are, one will do."""
    pairs, groups = (1, 1) if data.splits.exhaustive else (bars["least_pairs"], bars["least_groups"])
    for name, rows in kept.items():
        known = getattr(data, name).groups
        there = len({known[row] for row in rows}) if known else len(rows)
        if len(rows) < pairs or there < groups:
            said = f"{len(rows)} answered {name} pairs of {there} sentences or facts"
            return f"not measurable: {said}, {pairs} of {groups} are needed"
    return None


def _roles(
    data: PairsModule, subject: Subject, kept: Mapping[str, Sequence[int]], settings: Mapping[str, Any]
) -> dict[str, LookupHeads]:
    beds = (_bed(data, subject, getattr(data, name), rows, settings["pairs"]) for name, rows in kept.items())
    wanted = {key: settings[key] for key in ("candidates", "top", "least", "alpha", "draws")}
    hops = _first_hops(data, subject, kept["train"], settings["pairs"])
    return lookup_heads(*beds, data.splits.role_names, first_hops=hops, **wanted)  # type: ignore[arg-type]


def _first_hops(data: PairsModule, subject: Subject, rows: Sequence[int], most: int) -> PatchBed | None:
    """The first steps of answered training pairs; None where they have none."""
    hops = {hop.clean: hop for row in rows if (hop := data.splits.train[row].first_hop) is not None}
    if not hops or subject.tokenizer is None:
        return None
    encoded = encode(list(hops.values()), subject.tokenizer, (OTHER, END))
    return PatchBed.build(subject, encoded.batches(data.eval_batch_size, order=encoded.spread(most)))


def _bed(data: PairsModule, subject: Subject, pairs: EncodedPairs, rows: Sequence[int], most: int) -> PatchBed:
    """Answered pairs of as many sentences as possible."""
    answered = set(rows)
    chosen = [row for row in pairs.spread() if row in answered][:most]
    return PatchBed.build(subject, pairs.batches(data.eval_batch_size, order=chosen))
