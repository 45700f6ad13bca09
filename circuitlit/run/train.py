"""The main job: scores, masks, circuit, evaluation, page."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli import joint, ranks
from circuitlit.cli.ability import inability, measure_behaviour, report_inability
from circuitlit.cli.build import attribute, build_subject, build_workbench, provenance
from circuitlit.cli.checkpoints import check_checkpoint
from circuitlit.cli.checks import run_dir
from circuitlit.cli.folder import begin
from circuitlit.cli.learn import learn
from circuitlit.cli.loggers import open_loggers
from circuitlit.cli.resume import MASKS, trained_with
from circuitlit.discover.workbench import Workbench
from circuitlit.progress import Clock
from circuitlit.report.wandb_log import log_run
from circuitlit.run.bench.foretold import Foretold
from circuitlit.run.result import (
    Rival,
    against_cut,
    best_attribution,
    evaluated_pairs,
    make_result,
    publish,
    rivals,
    validation,
)
from circuitlit.timeline.mask_run import MaskRun, save_evolution


def run(cfg: DictConfig) -> dict[str, Any]:
    """Find a circuit and write everything into the run directory.

    Returns:
        The result; nothing in a process that does not write.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    check_checkpoint(cfg.ckpt_path, trained_with(cfg, MASKS, ranks.world()))
    joint.check(cfg)
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = build_workbench(cfg, build_subject(cfg))
    begin(cfg)
    with clock.phase("behaviour", "Checking that the model does the task"):
        behaviour = measure_behaviour(cfg, bench)
    if reason := inability(cfg, behaviour):
        return report_inability(cfg, bench, behaviour, reason, clock)
    with clock.phase("attribution", f"Scoring {bench.layout.n_edges:,} edges by {cfg.method.name}"):
        begun = time.perf_counter()
        attribution = attribute(cfg, bench)
        tried = rivals(cfg, bench, attribution, time.perf_counter() - begun)
    with open_loggers(cfg) as loggers:
        result = _search(cfg, bench, tried, behaviour.to_dict(), clock, loggers)
        if ranks.is_writer():
            log_run(loggers, run_dir(), OmegaConf.to_container(cfg, resolve=True))
    return result


def _search(
    cfg: DictConfig,
    bench: Workbench,
    tried: list[Rival],
    behaviour: dict[str, Any],
    clock: Clock,
    loggers: list[Any],
) -> dict[str, Any]:
    """Train, cut, evaluate, publish."""
    together = joint.adapt(cfg, bench) if cfg.adapter.get("train") else None
    bench = together.bench if together else bench
    with clock.phase("training", f"Training masks for {cfg.mask.schedule.steps} steps"):
        beside = together.trained if together else ()
        foretold = Foretold(cfg, bench, evaluated_pairs(cfg, bench, 0 if together else len(tried)))
        learner, history = learn(cfg, bench, tried[0].scores, run_dir(), [foretold], loggers, beside)
    if bench.model.shards is None:  # sharded weights need all processes in every forward
        ranks.leave()
        if not ranks.is_writer():
            return {}  # every process has the same masks; one measures and writes
    facts = provenance(cfg, bench.subject)
    if together:
        bench = together.finish()
        facts["model"] |= {"adapter": str(run_dir() / "adapter")}
    circuit = bench.cut(learner.scores(), facts)
    with clock.phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        torch.set_float32_matmul_precision("highest")
        bed = validation(bench, cfg.evaluate.probe_pairs)
        tried = [] if together else best_attribution(bench, tried, bed)
        result = make_result(cfg, bench, circuit, tried)
        result |= against_cut(learner.trained_masks(), circuit, bed)
    if not ranks.is_writer():
        return {}
    steps = learner.trainer.global_step
    _, timeline = save_evolution(MaskRun.read(run_dir(), history.rows, steps), run_dir())
    result |= {"steps": steps, "stages": timeline.to_dict(), "behaviour": behaviour}
    result |= {**clock.times(), "provenance": facts}
    return publish(circuit, result, {"rows": history.rows, "target_sparsity": cfg.sparsity.target})
