"""The learned sparse difference of a base and a tuned model: a shared mask, and the edges whose masks must differ."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig
from rich.text import Text

from circuitlit.cli import ranks
from circuitlit.cli.build import attribute, build_workbench, provenance
from circuitlit.cli.callbacks import FiniteLoss, History, Progress
from circuitlit.cli.checks import run_dir
from circuitlit.cli.loggers import open_loggers
from circuitlit.cli.progress import ProgressLines
from circuitlit.cli.sides import load_both
from circuitlit.discover import MaskedLoss, Schedule, initial_log_alpha
from circuitlit.discover.sparse_difference import DifferenceLearner, SparseDifference
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, summarise
from circuitlit.evaluate.overlap import shared_by_pairs
from circuitlit.evaluate.testing import with_holm
from circuitlit.files import write_json
from circuitlit.graph import EdgeScores
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence
from circuitlit.report.table import Metric, count

SHOWN = 10


def run(cfg: DictConfig) -> dict[str, Any]:
    """Learn both circuits and their difference, and write `difference.json` and the circuits.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    if not cfg.difference.penalty > 0:
        raise UserError(f"difference.penalty={cfg.difference.penalty} must be above 0; without it any edge may differ")
    if cfg.difference.pairs < 1:
        raise UserError(f"difference.pairs={cfg.difference.pairs} must be at least 1")
    if cfg.mask.sites != "edges" or cfg.mask.roles or cfg.sparsity.target is None:
        raise UserError(
            "difference needs masks on edges alone (mask.sites=edges mask.roles=false) and a sparsity.target"
        )
    if ranks.processes(cfg) > 1 or cfg.strategy.get("shard"):
        raise UserError("difference runs in one process; use strategy=single")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", "Loading both models"):
        benches = [build_workbench(cfg, subject) for subject in load_both(cfg)]
    with clock.phase("attribution", f"Scoring {benches[0].layout.n_edges:,} edges of both"):
        start = _start([attribute(cfg, bench) for bench in benches])
    with clock.phase("training", f"Training masks and their difference for {cfg.mask.schedule.steps} steps"):
        learner, history = _learned(cfg, benches, start)
        train = benches[0].data.train
    with clock.phase("leaving out", f"Leaving edges out one by one, on {cfg.difference.pairs} pairs"):
        order = train.spread(cfg.difference.pairs)
        found = learner.found(train.batches(cfg.data.eval_batch_size, order=order))
    with clock.phase("evaluation", f"Evaluating both circuits on {len(benches[0].data.test)} held-out pairs"):
        measured = _measured(cfg, benches, found)
    graph, edges = benches[0].subject.graph, found.open.any(0).nonzero()[:, 0].tolist()
    moved = {graph.edge_name(edge): float(found.shift[:, edge].sum()) for edge in edges}
    result = {
        "task": cfg.task.name,
        "base": {"name": benches[0].subject.name, **benches[0].subject.provenance},
        "tuned": {"name": benches[1].subject.name, **benches[1].subject.provenance},
        "penalty": cfg.difference.penalty,
        "seed": cfg.seed,
        "n_edges_total": benches[0].layout.n_edges,
        "n_edges": benches[0].count,
        "n_different": len(edges),
        "different": dict(sorted(moved.items(), key=lambda item: -abs(item[1]))),
        **measured,
        "history": history.rows,
        **clock.times(),
        "provenance": provenance(cfg, benches[0].subject),
    }
    write_json(run_dir() / "difference.json", result)
    _say(result)
    CONSOLE.print(f"{run_dir() / 'difference.json'}", highlight=False, soft_wrap=True)
    return result


def _start(scores: list[EdgeScores]) -> EdgeScores:
    """The mean of both models' weights, each normalised, for a start that favours neither."""
    mean = sum(one.weight / one.weight.sum().clamp(min=1e-30) for one in scores) / len(scores)
    return EdgeScores(scores[0].graph, torch.as_tensor(mean), "mean of both", scores[0].roles, kind="share")


def _learned(cfg: DictConfig, benches: list[Workbench], start: EdgeScores) -> tuple[DifferenceLearner, History]:
    objective = instantiate(cfg.objective.loss)
    losses = [MaskedLoss(bench.model, bench.layout, objective, cfg.mask.capture) for bench in benches]
    schedule: Schedule = instantiate(cfg.mask.schedule)
    layout = benches[0].layout
    initial = initial_log_alpha(layout, cfg.mask.init, start, benches[0].count, cfg.mask.init_scale)
    references = [bench.references for bench in benches]
    learner = DifferenceLearner(
        losses, references, initial, cfg.sparsity.target, schedule, cfg.difference.penalty, cfg.seed
    ).to(benches[0].subject.device)
    history = History(cfg.callbacks.history_every, ("loss", "base", "tuned", "open"))
    bar = cfg.callbacks.progress_bar
    watchers = [ProgressLines(aloud=not bar), *([Progress(refresh_rate=1)] if bar else [])]
    with open_loggers(cfg) as loggers:
        options = ranks.trainer_options(cfg)
        trainer: Trainer = instantiate(
            cfg.trainer, logger=loggers, callbacks=[history, FiniteLoss(), *watchers], **options
        )
        trainer.fit(learner, benches[0].data)
    return learner.to(benches[0].subject.device), history


def _measured(cfg: DictConfig, benches: list[Workbench], found: SparseDifference) -> dict[str, Any]:
    """Each model under its own circuit, and under the other's: what the difference is worth."""
    circuits = {"base": benches[0].cut(found.base), "tuned": benches[1].cut(found.tuned)}
    result: dict[str, Any] = {}
    for name, bench in zip(circuits, benches, strict=True):
        test = bench.data.test
        bed = TestBed.build(bench.model, bench.fresh_references(), test.batches(cfg.data.eval_batch_size))
        (run_dir() / name).mkdir(exist_ok=True)
        circuits[name].save(run_dir() / name)
        result[f"{name}_model"] = {
            of: asdict(summarise([bed.run(circuit.kept)], bed.full, bed.corrupted).kl)
            for of, circuit in circuits.items()
        }
    both = (circuits["base"].kept & circuits["tuned"].kept).sum()
    (shared,) = shared_by_pairs(circuits).values()
    return result | {"edges_in_both": int(both), "shared": with_holm(shared.to_dict())}


def _say(result: dict[str, Any]) -> None:
    title = f"{result['task']}: circuits of {count(result['n_edges'])} edges, {count(result['edges_in_both'])} in both"
    table = grid(title, ("KL (nats)", "base's circuit", "tuned model's circuit"))
    for name in ("base", "tuned"):
        row = result[f"{name}_model"]
        table.add_row(f"{name} model", str(Metric.of(row["base"])), str(Metric.of(row["tuned"])))
    CONSOLE.print(table)
    CONSOLE.print(overlap_sentence(result["shared"]), highlight=False)
    names = [f"{edge} ({shift:+.2f})" for edge, shift in result["different"].items()]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    text = f"{len(names)} edges in the difference mask: {', '.join(names[:SHOWN])}{more}" if names else "no difference"
    CONSOLE.print(Text(text), soft_wrap=True)
