"""The main job: scores, masks, circuit, evaluation, page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from omegaconf import DictConfig

from circuitlit.discover import MaskedLoss, MaskLearner, Schedule, initial_log_alpha
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.run.build import Workbench, attribute, build_subject, build_workbench, provenance
from circuitlit.run.callbacks import Checkpoints, FiniteLoss, HardCircuit, History, MaskSnapshots, Progress
from circuitlit.run.checks import run_dir
from circuitlit.run.clock import CONSOLE, Clock
from circuitlit.run.loggers import build_loggers, close_loggers
from circuitlit.run.result import best_attribution, make_result, publish


def run(cfg: DictConfig) -> dict[str, Any]:
    """Find a circuit and write everything into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check_checkpoint(cfg.ckpt_path)
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = build_workbench(cfg, build_subject(cfg))
    with clock.phase("attribution", f"Scoring {bench.layout.size:,} edges by {cfg.method.name}"):
        attribution = attribute(cfg, bench)
    with clock.phase("training", f"Training masks for {cfg.mask.schedule.steps} steps"):
        learner, history = learn(cfg, bench, attribution)
    facts = provenance(cfg, bench.subject)
    circuit = Circuit.cut(learner.scores(), bench.count, facts)
    with clock.phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        torch.set_float32_matmul_precision("highest")
        rival = best_attribution(bench, attribution, cfg.evaluate.probe_pairs)
        result = make_result(cfg, bench, circuit, rival)
    result |= {"steps": cfg.mask.schedule.steps, **clock.times(), "provenance": facts}
    return publish(circuit, result, {"rows": history.rows, "target_sparsity": cfg.sparsity.target})


def _check_checkpoint(path: str | None) -> None:
    if path is None:
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"ckpt_path={path} is not a readable checkpoint; resume from an older one") from error


def learn(
    cfg: DictConfig, bench: Workbench, attribution: EdgeScores, watchers: Sequence[Callback] = ()
) -> tuple[MaskLearner, History]:
    """Train the masks with the configured callbacks and loggers; `watchers` are called ahead of them."""
    loss = MaskedLoss(bench.model, bench.layout, instantiate(cfg.objective.loss), cfg.mask.capture)
    schedule: Schedule = instantiate(cfg.mask.schedule)
    start = _start_scores(cfg.mask.init_from, attribution)
    initial = initial_log_alpha(bench.layout.size, cfg.mask.init, start, bench.count, cfg.mask.init_scale)
    device = bench.subject.device
    learner = MaskLearner(
        loss,
        bench.references,
        initial,
        cfg.sparsity.target,
        schedule,
        instantiate(cfg.mask.gates),
        cfg.seed,
        cfg.mask.constraint_gradient,
    ).to(device)
    history = History(cfg.callbacks.history_every)
    loggers = build_loggers(cfg)
    callbacks = [*watchers, *_callbacks(cfg, bench, history)]
    trainer: Trainer = instantiate(
        cfg.trainer, logger=loggers, callbacks=callbacks, **instantiate(cfg.strategy.options)
    )
    try:
        trainer.fit(learner, bench.data, ckpt_path=cfg.ckpt_path, weights_only=True)
    finally:
        address = close_loggers(loggers)
        if address:
            CONSOLE.print(f"  W&B: {address}", highlight=False)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return learner.to(device), history


def _start_scores(init_from: str | None, attribution: EdgeScores) -> EdgeScores | None:
    if init_from is None:
        return None
    return attribution if init_from == "method" else Circuit.load(Path(init_from)).scores


def _callbacks(cfg: DictConfig, bench: Workbench, history: History) -> list[Any]:
    settings, folder = cfg.callbacks, run_dir()
    callbacks: list[Any] = [history, FiniteLoss(), MaskSnapshots(folder / "masks", settings.snapshot_every)]
    if settings.probe_every and len(bench.data.val):
        probe = bench.data.val.collate(range(min(settings.probe_pairs, len(bench.data.val))))
        bed = TestBed.build(bench.model, bench.fresh_references(), [probe])
        callbacks.append(HardCircuit(bed, bench.count, settings.probe_every, settings.probe_pairs, history))
    if settings.progress_bar:
        callbacks.append(Progress(refresh_rate=1))
    if settings.checkpoint_every:
        callbacks.append(
            Checkpoints(
                dirpath=folder / "checkpoints",
                filename="step_{step:06d}",
                auto_insert_metric_name=False,
                every_n_train_steps=settings.checkpoint_every,
                save_top_k=-1,
                save_last=True,
            )
        )
    return callbacks
