"""Trains masks as a configuration describes: what the main job and a study's mask learners share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Callback, Trainer
from omegaconf import DictConfig
from torch import nn

from circuitlit.cli import ranks, stopping
from circuitlit.cli.callbacks import (
    FiniteLoss,
    HardCircuit,
    History,
    MaskSnapshots,
    Progress,
    StopOnSignal,
)
from circuitlit.cli.checkpoints import Checkpoints, TrainedWith, contents
from circuitlit.cli.evolution import Evolution
from circuitlit.cli.folder import clear
from circuitlit.cli.loggers import open_loggers
from circuitlit.cli.progress import ProgressLines
from circuitlit.cli.resume import MASKS, trained_with
from circuitlit.discover import MaskLearner, Schedule, initial_log_alpha
from circuitlit.discover.error_weight import for_errors
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import TestBed
from circuitlit.graph import EdgeScores, load_circuit
from circuitlit.masked.kernels import use


def learn(
    cfg: DictConfig,
    bench: Workbench,
    attribution: EdgeScores | None,
    folder: Path,
    watchers: Sequence[Callback] = (),
    loggers: list[Any] | None = None,
    beside: Sequence[nn.Parameter] = (),
) -> tuple[MaskLearner, History]:
    """Train the masks that a configuration describes.

    Args:
        cfg: settings of masks, schedule, trainer, callbacks and loggers.
        bench: subject, pairs and masked model.
        attribution: scores to start from where `mask.init_from` is "method".
        folder: where mask files and checkpoints go.
        watchers: callbacks that are called ahead of the configured ones.
        loggers: to log to, and left open; None builds and closes those that `cfg` names.
        beside: parameters of the model's adapters that are trained with the masks, at `adapter.lr`.

    Raises:
        UserError: the start does not fit, or the loss is no longer a number.
    """
    use(cfg.mask.kernels)
    if cfg.ckpt_path is None and ranks.is_writer():
        clear(folder, "masks", "checkpoints")  # those of a cell that was stopped, or had other settings
    objective = for_errors(bench, instantiate(cfg.objective.loss), cfg.objective.get("error_weight"))
    with bench.training():
        loss = bench.loss(objective, capture=cfg.mask.capture and not beside)
        schedule: Schedule = instantiate(cfg.mask.schedule)
        start = _start_scores(cfg.mask.init_from, attribution, bench)
        initial = initial_log_alpha(bench.layout, cfg.mask.init, start, bench.count, cfg.mask.init_scale)
        device = bench.subject.device
        learner: MaskLearner = instantiate(cfg.mask.learner)(
            loss,
            bench.references,
            initial,
            cfg.sparsity.target,
            schedule,
            instantiate(cfg.mask.gates),
            cfg.seed,
            cfg.mask.constraint_gradient,
        ).to(device)
        if beside:
            learner.train_beside(beside, cfg.adapter.lr)
        history = History(cfg.callbacks.history_every)
        with nullcontext(loggers) if loggers is not None else open_loggers(cfg) as opened:
            trainer: Trainer = instantiate(
                cfg.trainer,
                logger=opened,
                callbacks=[*watchers, *_callbacks(cfg, bench, history, folder, probe=not beside)],
                **ranks.trainer_options(cfg),
            )
            trainer.fit(learner, bench.data, ckpt_path=cfg.ckpt_path, weights_only=True)
    stopping.end_of_patience()
    return learner.to(device), history


def training_settings(cfg: DictConfig, bench: Workbench) -> dict[str, Any]:
    """What the masks' training depends on, with short hashes of pairs and weights."""
    own = contents(bench.data.train.rows, bench.subject.model if bench.model.shards is None else None)
    return trained_with(cfg, MASKS, ranks.world()) | own


def _start_scores(init_from: str | None, attribution: EdgeScores | None, bench: Workbench) -> EdgeScores | None:
    if init_from is None:
        return None
    return attribution if init_from == "method" else load_circuit(init_from, bench.subject.graph).scores


def _callbacks(cfg: DictConfig, bench: Workbench, history: History, folder: Path, probe: bool) -> list[Any]:
    """`probe` is False where adapters are trained: the probe's ablated run would be one of untrained ones."""
    settings = cfg.callbacks
    masks, every = folder / "masks", settings.snapshot_every
    callbacks: list[Any] = [history, FiniteLoss(), MaskSnapshots(masks, every, bench.count)]
    callbacks.append(Evolution(masks, bench.count, every, settings.stop_at_convergence))
    if probe and settings.probe_every and settings.probe_pairs and len(bench.data.val):
        pairs = bench.data.val.collate(bench.data.val.spread(settings.probe_pairs))
        bed = TestBed.build(bench.model, bench.fresh_references(), [pairs])
        callbacks.append(HardCircuit(bed, bench.cut, settings.probe_every, settings.probe_pairs, history))
    callbacks.append(ProgressLines(aloud=not settings.progress_bar))
    if settings.progress_bar:
        on_gpu = bench.subject.device.type == "cuda"
        callbacks.append(Progress(refresh_rate=20 if on_gpu else 1))  # each look waits for the GPU
    if settings.checkpoint_every:
        callbacks.append(Checkpoints(folder / "checkpoints", settings.checkpoint_every, "step", keep=-1))
    callbacks.append(TrainedWith(training_settings(cfg, bench)))
    callbacks.append(StopOnSignal(folder / "checkpoints"))  # the last one: the others have seen the step
    return callbacks
