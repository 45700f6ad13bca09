"""The main job: scores, masks, circuit, evaluation, page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig
from rich.console import Console

from circuitlit.discover import MaskedLoss, MaskLearner, Schedule, initial_log_alpha
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed
from circuitlit.files import write_json
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.report import print_table, write_page
from circuitlit.run.build import Workbench, build_subject, build_workbench, provenance
from circuitlit.run.callbacks import Checkpoints, FiniteLoss, HardCircuit, History, MaskSnapshots, Progress
from circuitlit.run.checks import run_dir
from circuitlit.run.loggers import build_loggers, close_loggers
from circuitlit.run.result import best_attribution, make_result

CONSOLE = Console()


class Clock:
    """Prints what is being done and remembers how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Time a phase."""
        CONSOLE.print(f"[bold]{text}[/bold] ...", highlight=False)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        CONSOLE.print(f"  {self.seconds[name]:.1f} s", style="dim", highlight=False)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Find a circuit and write everything into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check_checkpoint(cfg.ckpt_path)
    folder = run_dir()
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = build_workbench(cfg, build_subject(cfg))
    loss = MaskedLoss(bench.model, bench.layout, instantiate(cfg.objective.loss), cfg.mask.capture)
    with clock.phase("attribution", f"Scoring {bench.layout.size:,} edges by {cfg.method.name}"):
        attribution = _attribute(cfg, bench, loss)
    with clock.phase("training", f"Training masks for {cfg.mask.schedule.steps} steps"):
        learner, history = _learn(cfg, bench, loss, attribution)
    facts = provenance(cfg, bench.subject)
    circuit = Circuit.cut(learner.scores(), bench.count, facts)
    with clock.phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        torch.set_float32_matmul_precision("highest")
        rival = best_attribution(bench, attribution, cfg.evaluate.probe_pairs)
        result = make_result(cfg, bench, circuit, rival)
    result |= {"seconds": sum(clock.seconds.values()), "seconds_by_phase": clock.seconds, "provenance": facts}
    circuit.save(folder)
    write_json(folder / "history.json", {"rows": history.rows, "target_sparsity": cfg.sparsity.target})
    write_json(folder / "result.json", result)
    page = write_page(folder)
    print_table(result, CONSOLE)
    for path in (folder / "result.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _check_checkpoint(path: str | None) -> None:
    if path is None:
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"ckpt_path={path} is not a readable checkpoint; resume from an older one") from error


def _attribute(cfg: DictConfig, bench: Workbench, loss: MaskedLoss) -> EdgeScores:
    """Scores of the configured method on the training pairs, in batches of equal length."""
    data = bench.data
    order = sorted(range(len(data.train)), key=data.train.lengths.__getitem__)
    size = cfg.data.batch_size
    pad = max(data.train.lengths) if cfg.data.pad_to == "max" else None
    groups = [order[i : i + size] for i in range(0, len(order), size)][: cfg.method.max_batches]
    batches = (data.train.collate(group, pad) for group in groups)
    return instantiate(cfg.method.score)(loss, bench.references, batches)


def _learn(cfg: DictConfig, bench: Workbench, loss: MaskedLoss, attribution: EdgeScores) -> tuple[MaskLearner, History]:
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
    trainer: Trainer = instantiate(
        cfg.trainer, logger=loggers, callbacks=_callbacks(cfg, bench, history), **instantiate(cfg.strategy.options)
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
