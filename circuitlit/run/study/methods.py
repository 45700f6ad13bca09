"""What the cells of a study do: score, learn, cut, measure."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.ability import inability
from circuitlit.cli.build import attribute, build_method, build_workbench, encoded, plain, provenance
from circuitlit.cli.learn import learn
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, noise_floor, random_circuit, size_curve
from circuitlit.evaluate.find import ask
from circuitlit.evaluate.rival import signed_or_absolute, validation
from circuitlit.evaluate.similarity import Spread
from circuitlit.evaluate.verdict import held_out
from circuitlit.graph import Circuit, EdgeScores, MaskLayout
from circuitlit.graph.select import edge_budget
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.run.study.cells import Cell

BETWEEN = (0.003, 0.0075, 0.015, 0.03, 0.04, 0.07)  # shares of the edges kept, beside MIB's sizes
_SHARED = ("task", "model", "adapter", "ablation")


@dataclass
class Stage:
    """One task with all that its cells share, built once.

    Attributes:
        cfg: the task's configuration.
        bench: subject, pairs and masked model.
        test: the pairs that are reported on.
        val: the pairs that rankings are chosen by; None where the task has none.
        known: scores and seconds of attributions that are done, by their settings.
    """

    cfg: DictConfig
    bench: Workbench
    test: TestBed
    val: TestBed | None
    known: dict[str, tuple[EdgeScores, float]] = field(default_factory=dict)

    @classmethod
    def build(cls, cfg: DictConfig, subject: Subject) -> Stage:
        """Encode the task and run full model and ablated one on its held-out pairs."""
        bench = build_workbench(cfg, subject)
        return cls(cfg, bench, held_out(bench), validation(bench, cfg.evaluate.probe_pairs))

    def at(self, cfg: DictConfig, sparsity: float, data_seed: int | None = None) -> Workbench:
        """The workbench for a cell's masks, size and order of the training pairs.

        Raises:
            UserError: the cell changes what the whole task shares.
        """
        changed = next((group for group in _SHARED if plain(cfg[group]) != plain(self.cfg[group])), None)
        if changed:
            raise UserError(f"study: a method cannot change {changed}; change it for the task or for the study")
        bench, roles = self.bench, self.bench.data.splits.role_names if cfg.mask.roles else ()
        layout = MaskLayout(bench.subject.graph, roles)
        if data_seed is None:
            data = bench.data
        elif plain(cfg.data) == plain(self.cfg.data):
            data = bench.data.with_seed(data_seed)
        else:
            data = encoded(cfg, bench.data.splits, bench.subject)
        return replace(bench, layout=layout, data=data, count=edge_budget(sparsity, layout.n_edges))

    def attribution(self, cfg: DictConfig, bench: Workbench) -> tuple[EdgeScores, float]:
        """Scores of the configured method and the seconds that they took, made once."""
        key = str((plain(cfg.method), cfg.mask.roles, cfg.data))
        if key not in self.known:
            started = time.perf_counter()
            scores = attribute(cfg, bench)
            self.known[key] = scores, time.perf_counter() - started
        return self.known[key]


def ends(cfg: DictConfig, stage: Stage) -> dict[str, Any]:
    """The full model and the corrupted run, pair by pair.

    Raises:
        UserError: the model does not do the task, so that no circuit is sought.
    """
    behaviour = ask(stage.bench, aloud=False)[0]
    if reason := inability(cfg, behaviour):
        raise UserError(reason)
    return {
        "behaviour": behaviour.to_dict(),
        "n_pairs": len(stage.test.full.kl),
        "n_train": len(stage.bench.data.train),
        "n_edges_total": stage.bench.layout.n_edges,
        "full": by_pair(stage.test.full),
        "corrupted": by_pair(stage.test.corrupted),
    }


def control_cell(cfg: DictConfig, stage: Stage) -> dict[str, Any]:
    """Random circuits at every sparsity."""
    rows, started = [], time.perf_counter()
    for sparsity in cfg.study.sparsities:
        bench = stage.at(cfg, sparsity)
        graph, copies = bench.subject.graph, bench.layout.copies
        for seed in range(cfg.evaluate.controls):
            outcome = stage.test.run(random_circuit(graph, bench.count, seed, copies), cfg.evaluate.control_pairs)
            rows.append({"sparsity": sparsity, "n_edges": bench.count, "by_pair": by_pair(outcome)})
    return {"rows": rows, "seconds": time.perf_counter() - started}


def attribution_cell(cfg: DictConfig, stage: Stage, cell: Cell) -> dict[str, Any]:
    """One method's scores, cut at every sparsity, with the noise floor of its circuits."""
    seed_everything(cfg.seed, verbose=False)
    first = stage.at(cfg, cfg.study.sparsities[0])
    scores, seconds = stage.attribution(cfg, first)
    resampled = _resampled(cfg, first)
    rows = []
    for sparsity in _sparsities(cfg, scores):
        bench = stage.at(cfg, sparsity)
        if scores.limit is not None:
            bench = replace(bench, count=scores.limit)
        ranked = signed_or_absolute(stage.val, bench, scores) if stage.val else scores
        row = _row(stage, bench, ranked, sparsity)
        if resampled:
            same = [replace(each, ranks_by_magnitude=ranked.ranks_by_magnitude) for each in resampled]
            row["noise"] = Spread.of([bench.cut(each).kept for each in same]).to_dict()
        rows.append(row)
    size = min(first.count, scores.limit or first.count)
    _save(replace(first, count=size).cut(scores, provenance(cfg, first.subject)), cell.folder)
    return {"rows": rows, "seconds": seconds, "details": scores.details, **_curves(cfg, stage, scores, rows)}


def _sparsities(cfg: DictConfig, scores: EdgeScores) -> list[float]:
    """The study's sparsities; for a method that keeps a number of edges of its own, that alone.

    Its circuit stands with the study's sparsity for which it was searched, where it was.
    """
    if scores.limit is None:
        return list(cfg.study.sparsities)
    searched = [at for at in cfg.study.sparsities if edge_budget(at, scores.size) == cfg.method.score.get("count")]
    return searched or [1 - scores.limit / scores.size]


def learner_cell(cfg: DictConfig, stage: Stage, cell: Cell) -> dict[str, Any]:
    """One mask run: its circuit and its ranking of all edges."""
    seed_everything(cfg.seed, verbose=False)
    bench = stage.at(cfg, cfg.sparsity.target, cfg.seed)
    start, seconds = None, 0.0
    if cfg.mask.init_from == "method":
        start, seconds = stage.attribution(cfg, bench)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    started = time.perf_counter()
    try:
        learner, _ = learn(cfg, bench, start, cell.folder)
    finally:
        torch.set_float32_matmul_precision("highest")
    seconds += time.perf_counter() - started
    scores = learner.scores()
    sparsities = cfg.study.sparsities if cell.sparsity is None else [cell.sparsity]
    rows = [_row(stage, stage.at(cfg, sparsity), scores, sparsity) for sparsity in sparsities]
    _save(stage.at(cfg, sparsities[0]).cut(scores, provenance(cfg, bench.subject)), cell.folder)
    return {"rows": rows, "seconds": seconds, **_curves(cfg, stage, scores, rows)}


def by_pair(outcome: Outcome) -> dict[str, list[float]]:
    """An outcome as plain lists."""
    return {name: values.tolist() for name, values in vars(outcome).items()}


def _row(stage: Stage, bench: Workbench, scores: EdgeScores, sparsity: float) -> dict[str, Any]:
    circuit = bench.cut(scores)
    val = stage.val.run(circuit.kept).kl.mean() if stage.val else None
    return {
        "sparsity": sparsity,
        "n_edges": circuit.n_edges,
        "n_edges_reachable": circuit.n_reachable,
        "ranking": scores.ranking,
        "select": bench.select,
        "val_kl": None if val is None else float(val),
        "by_pair": by_pair(stage.test.run(circuit.kept)),
    }


def _resampled(cfg: DictConfig, bench: Workbench) -> list[EdgeScores]:
    """The method's scores on bootstrap samples of its training pairs."""
    if cfg.study.resamples < 2:
        return []
    n_pairs = len(bench.data.train)
    _, circuits = noise_floor(Resampler(bench, build_method(cfg)), bench.cut, n_pairs, cfg.study.resamples)
    return [circuit.scores for circuit in circuits]


def _curves(cfg: DictConfig, stage: Stage, scores: EdgeScores, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Areas over MIB's sizes, and KL at those and more sizes, on the first test pairs and on the validation pairs.

    A method that keeps a number of edges of its own is left out: at other sizes it has no circuit.
    """
    pairs = cfg.study.curve_pairs
    if not pairs or scores.limit is not None:
        return {"curve": None, "kl_by_size": [], "val_kl_by_size": []}
    ranked = replace(scores, ranks_by_magnitude=rows[0]["ranking"] == "absolute")
    curve = size_curve(stage.test, ranked, select=cfg.sparsity.select, pairs=pairs)
    names = ("cpr", "cmd", "cpr_anchored", "cmd_anchored")
    found = {n: point.kl.value for n, point in zip(curve.n_edges, curve.points, strict=True) if n}
    for row in rows:
        kls = row["by_pair"]["kl"][:pairs]
        found[row["n_edges"]] = sum(kls) / len(kls)

    def kl_at(bed: TestBed, count: int, pairs: int | None) -> float:
        return float(bed.run(Circuit.cut(ranked, count, select=cfg.sparsity.select).kept, pairs).kl.mean())

    for count in {int(share * scores.size) for share in BETWEEN} - set(found) - {0}:
        found[count] = kl_at(stage.test, count, pairs)
    chosen_by = [(count, kl_at(stage.val, count, None)) for count in sorted(found)] if stage.val else []
    areas = {"ranking": curve.ranking, **{name: asdict(getattr(curve, name)) for name in names}}
    return {"curve": areas, "kl_by_size": sorted(found.items()), "val_kl_by_size": chosen_by}


def _save(circuit: Circuit, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    circuit.save(folder)
