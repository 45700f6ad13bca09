"""Circuits of several tasks on each other's pairs, and why a tuned model got worse at some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool
from lightning import seed_everything
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from circuitlit.cli.build import attribute, build_workbench, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_base, load_both, task_settings
from circuitlit.compare.capability import Capability, capabilities
from circuitlit.compare.effects import PairBed, as_dict, gain_share, node_weights, plain_logits
from circuitlit.compare.generality import (
    ablation_specificity,
    composites,
    conflict_index,
    conflicting,
    generality,
    shuffled_conflict,
)
from circuitlit.compare.matched import matched_nodes, mean_overlap
from circuitlit.compare.transplant import Transplant
from circuitlit.compare.weight_figures import node_changes
from circuitlit.compare.weights import weight_changes
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, random_circuit, summarise
from circuitlit.evaluate.overlap import TESTS, shared_by_pairs
from circuitlit.evaluate.statistics import mean_of
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws, rank_p, until_clear, with_holm
from circuitlit.files import write_json
from circuitlit.graph import Circuit, load_circuit
from circuitlit.model import Subject
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.generality import print_generality, write_generality
from circuitlit.run.prevention import prevention


@dataclass(frozen=True)
class _Task:
    """One task: its circuit and its held-out pairs."""

    circuit: Circuit
    bed: TestBed

    @property
    def kept(self) -> Bool[Tensor, "copies edge"]:
        """Its edges."""
        return self.circuit.kept


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measure all circuits on all tasks and write `generality.json` and a page into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    settings = cfg.generality
    if settings.draws is not None and settings.draws < LEAST_DRAWS:
        raise UserError(f"generality.draws={settings.draws} is too few random sets; take at least {LEAST_DRAWS}")
    tasks = task_settings(settings.tasks, "generality.tasks")
    if len(tasks) < 2:
        raise UserError("generality.tasks needs at least two tasks, such as generality.tasks=[ioi,sva]")
    circuits = list(settings.circuits) if isinstance(settings.circuits, ListConfig) else [None] * len(tasks)
    if len(circuits) != len(tasks):
        raise UserError(f"generality.circuits names {len(circuits)} circuits for {len(tasks)} tasks; name one for each")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", "Loading the model"):
        base, tuned = (load_base(cfg), None) if cfg.tuned is None else load_both(cfg)
    made = {}
    for (name, own), path in zip(tasks.items(), circuits, strict=True):
        with clock.phase(f"scores_{name}", f"Circuit of {name}"):
            made[name] = _task(own, base, path)
    with clock.phase("matrices", f"{len(made)} circuits on {len(made)} tasks, and random ones"):
        result = {
            "model": base.name,
            "method": cfg.method.name,
            "ablated_by": cfg.ablation.kind,
            "seed": cfg.seed,
            "settings": plain(settings),
            "tasks": list(made),
            "n_edges": {name: int(task.kept.sum()) for name, task in made.items()},
            **_matrices(cfg, made),
            "composites": _composites(cfg, made),
            "transfer": None,
            "prevention": None,
        }
    if tuned is not None:
        with clock.phase("transfer", "Looking for what the tuned model lost, and reverting nodes"):
            result["transfer"] = _negative(cfg, made, base, tuned)
    if settings.prevent.tune_on is not None:
        with clock.phase("prevention", f"Tuning on {settings.prevent.tune_on} with nodes frozen, and without"):
            own = {name: task.circuit for name, task in made.items()}
            result["prevention"] = prevention(cfg, tasks, own, base)
    result |= {**clock.times(), "provenance": provenance(cfg, base)}
    write_json(run_dir() / "generality.json", with_holm(result))
    page = write_generality(run_dir())
    print_generality(result, CONSOLE)
    for path in (run_dir() / "generality.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _task(cfg: DictConfig, subject: Subject, path: str | None) -> _Task:
    bench = build_workbench(cfg, subject)
    scores = load_circuit(path, subject.graph).scores if path else attribute(cfg, bench)
    if scores.roles:
        raise UserError(
            f"{path or cfg.task.name} has masks for token roles, which other tasks lack; use mask.roles=false"
        )
    order = bench.data.test.spread(cfg.generality.pairs)
    batches = bench.data.test.batches(cfg.data.eval_batch_size, order=order)
    bed = TestBed.build(bench.model, bench.fresh_references(), batches)
    if not bool(bed.full.metric.isfinite().all()):
        raise UserError(f"task {cfg.task.name} has pairs without wrong answers, so there is no metric to change")
    return _Task(bench.cut(scores), bed)


def _matrices(cfg: DictConfig, tasks: dict[str, _Task]) -> dict[str, Any]:
    """F, O and D, the figures made of them, and what random circuits reach."""
    members = list(tasks.values())

    def faithfulness(kept: Tensor, bed: TestBed) -> Any:
        return summarise([bed.run(kept)], bed.full, bed.corrupted).faithfulness

    f = [[faithfulness(one.kept, two.bed) for two in members] for one in members]
    d = [[faithfulness(~one.kept, two.bed) for two in members] for one in members]
    lost = [[None if cell.value is None else 1 - cell.value for cell in row] for row in d]
    values = [[cell.value for cell in row] for row in f]
    return {
        "faithfulness": [[as_dict(cell) for cell in row] for row in f],
        **_shared(cfg, tasks),
        "lost": lost,
        "generality": generality(values),
        "specificity": ablation_specificity(lost),
        "random": {name: _random(cfg, task) for name, task in tasks.items()},
    }


def _shared(cfg: DictConfig, tasks: dict[str, _Task]) -> dict[str, Any]:
    """What every two circuits share beside chance, and as a matrix J* of their edges under the strictest null."""
    circuits = {name: task.circuit for name, task in tasks.items()}
    found = shared_by_pairs(circuits, cfg.seed, _others(cfg))
    alike = {frozenset(pair): shared.edges.corrected for pair, shared in found.items()}
    return {
        "overlap": [[alike.get(frozenset((one, two)), 1.0) for two in tasks] for one in tasks],
        "shared": [{"of": list(pair), **shared.to_dict()} for pair, shared in found.items()],
    }


def _others(cfg: DictConfig) -> int:
    """Claims of every task beside overlaps: circuit against random ones; of a tuned model conflict, reverting."""
    return (1 if cfg.tuned is None else 3) * len(cfg.generality.tasks)


def _most(cfg: DictConfig) -> int:
    """Random draws that are enough for all claims of the page."""
    n_tasks = len(cfg.generality.tasks)
    return enough_draws(TESTS * n_tasks * (n_tasks - 1) // 2 + _others(cfg))


def _random(cfg: DictConfig, task: _Task) -> dict[str, Any]:
    """Faithfulness of random circuits of the same size, and the task's own circuit by KL among them, on the same pairs.

    The pairs are of every sentence.
    """
    bed, settings = task.bed, cfg.generality
    pairs = min(max(settings.control_pairs, len(bed.full.group.unique())), len(bed.full.kl))
    own, count = bed.run(task.kept, pairs), int(task.kept.sum())
    most = settings.draws or _most(cfg)
    drawn = (bed.run(random_circuit(bed.model.graph, count, seed), pairs) for seed in range(most))
    closeness = -float(own.kl.mean())
    found = until_clear([closeness], drawn, lambda one: [-float(one.kl.mean())])
    return {
        **as_dict(summarise(found, bed.full, bed.corrupted).faithfulness),
        "n_pairs": pairs,
        "draws": len(found),
        "circuit": as_dict(summarise([own], bed.full, bed.corrupted).faithfulness),
        "rank_p": rank_p(closeness, [-float(one.kl.mean()) for one in found]),
    }


def _composites(cfg: DictConfig, tasks: dict[str, _Task]) -> list[dict[str, Any]]:
    """Union and intersection of every two circuits, of the size of the larger one, on both tasks."""
    found = []
    for one, two in combinations(tasks, 2):
        count = max(int(tasks[name].kept.sum()) for name in (one, two))
        for kind, kept in composites(tasks[one].circuit, tasks[two].circuit, count).items():
            on = {}
            for name in (one, two):
                bed = tasks[name].bed
                on[name] = as_dict(summarise([bed.run(kept)], bed.full, bed.corrupted).faithfulness)
            found.append({"of": [one, two], "kind": kind, "n_edges": int(kept.sum()), "faithfulness": on})
    return found


def _negative(cfg: DictConfig, tasks: dict[str, _Task], base: Subject, tuned: Subject) -> dict[str, Any]:
    """Which tasks tuning damaged, where it collides with their circuits, and what reverting those nodes brings back."""
    settings = cfg.generality
    beds = {name: PairBed(base, task.bed.batches) for name, task in tasks.items()}
    after = {name: bed.measure(lambda batch: plain_logits(tuned, batch)) for name, bed in beds.items()}
    outcomes = {name: (beds[name].full, after[name]) for name in tasks}
    judged = capabilities(outcomes, settings.chance, settings.min_effect, settings.alpha)
    moved = node_changes(list(weight_changes(base, tuned)))
    back = Transplant(tuned, base)
    means = [float((after[name].metric - beds[name].full.metric).mean()) for name in tasks]
    found = {
        "tuned": {"name": tuned.name, **tuned.provenance},
        "tasks": {name: asdict(capability) for name, capability in judged.items()},
        "mean_change": sum(means) / len(means),
        "conflict": {name: _conflict(cfg, task, moved) for name, task in tasks.items()},
        "reverted": {
            name: _revert(cfg, name, tasks[name], moved, beds, after, judged, back)
            for name, capability in judged.items()
            if capability.verdict == "degraded"
        },
    }
    return found


def _conflict(cfg: DictConfig, task: _Task, moved: dict[str, float]) -> dict[str, Any]:
    importance = node_weights(task.circuit)
    own = conflict_index(importance, moved)
    chance = shuffled_conflict(importance, moved, max(200, _most(cfg)), cfg.seed)
    return {
        "index": own,
        "by_chance": as_dict(mean_of(chance)),
        "rank_p": rank_p(own, chance),
    }


def _revert(
    cfg: DictConfig,
    name: str,
    task: _Task,
    moved: dict[str, float],
    beds: dict[str, PairBed],
    after: dict[str, Outcome],
    judged: dict[str, Capability],
    back: Transplant,
) -> dict[str, Any]:
    """What a damaged task gets back with its conflicting nodes at base weights, and what that costs the gains."""
    settings = cfg.generality
    nodes = conflicting(node_weights(task.circuit), moved, settings.revert)
    gained = [other for other, capability in judged.items() if capability.verdict in ("gained", "improved")]

    def reverted(members: Sequence[str]) -> dict[str, Any]:
        found = {}
        with back.weights(members) as copy:
            for other in (name, *gained):
                outcome = beds[other].measure(lambda batch: plain_logits(copy, batch))
                found[other] = gain_share(after[other], beds[other].full, outcome)
        return found

    own = reverted(nodes)
    sets = matched_nodes(back.graph, nodes, settings.draws or _most(cfg), cfg.seed)
    others = until_clear([own[name].value], map(reverted, sets), lambda one: [one[name].value])
    recovered = [found[name].value for found in others if found[name].value is not None]
    return {
        "nodes": nodes,
        "withheld": withheld(back.graph, nodes),
        "recovered": as_dict(own[name]),
        "random_recovered": as_dict(mean_of(recovered)) if recovered else None,
        "rank_p": rank_p(own[name].value, recovered) if own[name].value is not None else None,
        "overlap": mean_overlap(nodes, sets),
        "gain_lost": {other: as_dict(own[other]) for other in gained},
        "random_gain_lost": {other: as_dict(mean_of([found[other].value for found in others])) for other in gained},
    }
