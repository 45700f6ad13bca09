"""The main job: scores, masks, circuit, evaluation, page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from omegaconf import DictConfig, OmegaConf

from circuitlit.cli import joint, ranks
from circuitlit.cli.build import build_bars, build_method, build_rivals, build_subject, build_workbench, provenance
from circuitlit.cli.checkpoints import check_checkpoint
from circuitlit.cli.checks import run_dir
from circuitlit.cli.evolution import snapshots_of
from circuitlit.cli.finish import finish_circuit, prepare
from circuitlit.cli.folder import begin
from circuitlit.cli.learn import learn
from circuitlit.cli.loggers import open_loggers
from circuitlit.cli.resume import MASKS, trained_with
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.find import Trained, search_circuit
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.evaluate.rival import Rival
from circuitlit.evaluate.verdict import evaluated_pairs
from circuitlit.progress import phase
from circuitlit.report.wandb_log import log_run
from circuitlit.run.bench.foretold import Foretold
from circuitlit.timeline.mask_timeline import follow_masks


def run(cfg: DictConfig) -> FoundCircuit | None:
    """Find a circuit and write everything into the run directory; None in a process that does not write."""
    check_checkpoint(cfg.ckpt_path, trained_with(cfg, MASKS, ranks.world()))
    joint.check(cfg)
    prepare(cfg, cfg.matmul_precision if torch.cuda.is_available() else "highest")
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = build_workbench(cfg, build_subject(cfg))
    begin(cfg)
    facts, bars, opened, seen = provenance(cfg, bench.subject), build_bars(cfg), [], []

    def train(bench: Workbench, tried: Sequence[Rival]) -> Trained | None:
        opened.extend(stack.enter_context(open_loggers(cfg)))
        together = joint.adapt(cfg, bench) if cfg.adapter.get("train") else None
        bench, beside = (together.bench, together.trained) if together else (bench, ())
        with phase("training", f"Training masks for {cfg.mask.schedule.steps} steps"):
            foretold = Foretold(cfg, bench, evaluated_pairs(bench, bars, 0 if together else len(tried)))
            learner, history = learn(cfg, bench, tried[0].scores, run_dir(), [foretold], opened, beside)
        if not ranks.one_goes_on(bench):
            return None  # every process has the same masks; one measures and writes
        if together:
            bench = together.finish()
            facts["model"] |= {"adapter": str(run_dir() / "adapter")}
        seen.append(snapshots_of(learner.trainer))
        steps, masks = learner.trainer.global_step, learner.trained_masks()
        return Trained(learner.scores(), masks, history.rows, steps, bench, compared=not together)

    with ExitStack() as stack:
        more = {"bars": bars, "min_accuracy": cfg.task.get("min_accuracy", 0), "seed": cfg.seed, "provenance": facts}
        result = search_circuit(bench, build_method(cfg), train, others=build_rivals(cfg), **more)
        if result is None or not ranks.is_writer():
            return None
        if result.n_edges is not None:
            timeline = follow_masks(seen[0], result.live.curves)
            timeline.save(run_dir())
            result = result.replaced(stages=timeline.stages.to_dict())
        result = finish_circuit(cfg, result, facts)
        log_run(opened, run_dir(), OmegaConf.to_container(cfg, resolve=True))
    return result
