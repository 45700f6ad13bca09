"""The main job: scores, masks, circuit, evaluation, page."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from circuitlit.cli import joint, ranks
from circuitlit.cli.build import build_bars, build_baselines, build_method, build_subject, build_workbench, provenance
from circuitlit.cli.checkpoints import check_checkpoint
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish_circuit, prepare
from circuitlit.cli.folder import begin
from circuitlit.cli.mask_training import MaskTraining
from circuitlit.cli.resume import MASKS, trained_with
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.find import search_circuit
from circuitlit.evaluate.found import FoundCircuit
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
    facts, bars = provenance(cfg, bench.subject), build_bars(cfg)

    def foretold(bench: Workbench, tried: int) -> Foretold:
        return Foretold(cfg, bench, evaluated_pairs(bench, bars, tried))

    with MaskTraining(cfg, facts, foretold) as train:
        settings = {"min_accuracy": cfg.task.get("min_accuracy", 0), "seed": cfg.seed, "provenance": facts}
        more = {"others": build_baselines(cfg), "bars": bars, "show": train.first_page}
        result = search_circuit(bench, build_method(cfg), train, **more, **settings)
        if result is None or not ranks.is_writer():
            return None
        if train.seen is not None:
            timeline = follow_masks(train.seen, result.live.curves)
            timeline.save(run_dir())
            result = result.replaced(stages=timeline.stages.to_dict())
        result = finish_circuit(cfg, result, facts)
        log_run(train.loggers, run_dir())
    return result
