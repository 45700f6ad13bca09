"""Fine-tuning: the tuned model, checkpoints on the way, and what it does on held-out pairs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from torch import nn

from circuitlit.cli import stopping
from circuitlit.cli.build import build_subject, plain, provenance
from circuitlit.cli.callbacks import FiniteLoss, History, Progress, StopOnSignal
from circuitlit.cli.checkpoints import Checkpoints, TrainedWith, check_checkpoint, contents
from circuitlit.cli.checks import run_dir
from circuitlit.cli.folder import begin
from circuitlit.cli.loggers import build_loggers, close_loggers
from circuitlit.cli.progress import ProgressLines
from circuitlit.cli.resume import TUNING, trained_with
from circuitlit.errors import UserError
from circuitlit.files import write_json
from circuitlit.finetune import (
    CheckpointFolders,
    Examples,
    HeldOut,
    Optimisation,
    Tuner,
    TuningData,
    adapted,
    behaviour_change,
    examples_of_file,
    examples_of_task,
    reference_log_probs,
    save_model,
    steps_to_save,
)
from circuitlit.finetune.freeze import Frozen
from circuitlit.finetune.only import circuit_nodes, train_only
from circuitlit.model import Subject
from circuitlit.model.limits import check_rows
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report import print_behaviour

WATCHED = {"sft": ("loss",), "dpo": ("loss", "margin", "preferred"), "grpo": ("loss", "reward", "kl")}


def run(cfg: DictConfig) -> dict[str, Any]:
    """Tune and write everything into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check(cfg)
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    folder, clock = run_dir(), Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the examples of {cfg.tune.data or cfg.task.name}"):
        subject = build_subject(cfg)
        data = TuningData(_examples(cfg, subject), cfg.data.batch_size, cfg.seed)
        facts = provenance(cfg, subject) | {"tune": plain(cfg.tune)}
        wanted = cfg.tune.checkpoints
        steps = steps_to_save(cfg.tune.steps, wanted if isinstance(wanted, int) else list(wanted))
        trained = trained_with(cfg, TUNING, 1) | contents(_rows(data), subject.model)
    begin(cfg)
    with clock.phase("before", f"Testing on {len(data.test)} held-out pairs"):
        held_out = HeldOut(subject.model, data.test.chosen, cfg.data.eval_batch_size, subject.device)
        watched = _watched(cfg, subject, data)
        tuner = _tuner(cfg, subject, data)
    with clock.phase("tuning", f"Tuning for {cfg.tune.steps} steps: {trained_share(tuner.model)}"):
        history = _fit(cfg, subject, data, tuner, steps, watched, trained)
    with clock.phase("after", "Testing the tuned model"):
        outcome = held_out.measure(tuner.model)
        change = behaviour_change(held_out.base, outcome)
        reason = change.shortfall(cfg.tune.score)
        assert subject.tokenizer is not None
        save_model(tuner.model, subject.tokenizer, folder / "tuned")
    result = {
        "status": "FAILED" if reason else "OK",
        "reason": reason,
        "task": cfg.tune.data or cfg.task.name,
        "model": cfg.model.name,
        "tune": cfg.tune.name,
        "adapter": "full" if cfg.adapter.build is None else cfg.adapter.build["_target_"].rsplit(".", 1)[-1],
        "seed": cfg.seed,
        "steps": cfg.tune.steps,
        "score": cfg.tune.score,
        "n_parameters_trained": _count(tuner.model, trained=True),
        "n_parameters": _count(tuner.model, trained=False),
        "held_out": change.to_dict(),
        **clock.times(),
        "provenance": facts,
    }
    write_json(folder / "history.json", {"rows": history.rows})
    by_pair = {name: getattr(outcome, name).tolist() for name in ("accuracy", "metric", "group")}
    write_json(folder / "held_out.json", by_pair, indent=None)  # for paired tests between runs
    write_json(folder / "result.json", result)
    print_behaviour(result, CONSOLE)
    for path in (folder / "tuned", folder / "result.json"):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _check(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is loaded."""
    Optimisation(cfg.tune.steps, cfg.tune.lr, cfg.tune.warmup, cfg.tune.weight_decay)
    if cfg.tune.score not in ("accuracy", "metric"):
        raise UserError(f"tune.score={cfg.tune.score} is neither accuracy nor metric; choose one")
    if cfg.adapter.path is not None:
        raise UserError("adapter=peft is a finished adapter; tune with adapter=none, lora or adalora")
    if cfg.adapter.build is None and cfg.model.dtype != "float32":
        raise UserError(
            f"model.dtype={cfg.model.dtype} would round the updates of all weights; use float32 and, on a GPU, "
            "trainer.precision=bf16-mixed, or adapter=lora"
        )
    check_checkpoint(cfg.ckpt_path, trained_with(cfg, TUNING, 1))


def _examples(cfg: DictConfig, subject: Subject) -> dict[str, Examples]:
    assert subject.tokenizer is not None
    if cfg.tune.data:
        examples = examples_of_file(cfg.tune.data, subject.tokenizer, cfg.seed)
    else:
        examples = examples_of_task(instantiate(cfg.task.build)(tokenizer=subject.tokenizer), subject.tokenizer)
    for name, split in examples.items():
        for side in (split.chosen, *([split.rejected] if split.rejected else [])):
            check_rows(subject.model.config, side.rows, name)
    return examples


def _watched(cfg: DictConfig, subject: Subject, data: TuningData) -> HeldOut | None:
    """Validation pairs for the curves; None without any."""
    count = min(cfg.tune.probe_pairs, len(data.val))
    if not count:
        return None
    some = type(data.val.chosen)(data.val.chosen.rows[:count], data.val.chosen.role_names)
    return HeldOut(subject.model, some, cfg.data.eval_batch_size, subject.device)


def _tuner(cfg: DictConfig, subject: Subject, data: TuningData) -> Tuner:
    """The objective on the model, all weights or an adapter trainable; what full tuning compares with is made here."""
    make = instantiate(cfg.tune.build, _convert_="all")
    optimisation = Optimisation(cfg.tune.steps, cfg.tune.lr, cfg.tune.warmup, cfg.tune.weight_decay)
    if cfg.adapter.build is not None:
        config = instantiate(cfg.adapter.build, _convert_="all")(subject.model, cfg.tune.steps)
        return make(adapted(subject.model, config), optimisation, seed=cfg.seed)
    reference: dict[str, Any] = {}
    if cfg.tune.name == "dpo":
        size = cfg.data.eval_batch_size
        reference["reference"] = reference_log_probs(subject.model, data.train, size, subject.device)
    if cfg.tune.name == "grpo":
        reference["reference"] = copy.deepcopy(subject.model)
    if cfg.tune.circuit:
        train_only(subject, circuit_nodes(cfg, subject))
    else:
        subject.model.requires_grad_(True)
    return make(subject.model, optimisation, seed=cfg.seed, **reference)


def _rows(data: TuningData) -> list[object]:
    """The training examples, both sides."""
    rejected = data.train.rejected
    return [*data.train.chosen.rows, *(rejected.rows if rejected else ())]


def _fit(
    cfg: DictConfig,
    subject: Subject,
    data: TuningData,
    tuner: Tuner,
    steps: list[int],
    watched: HeldOut | None,
    trained: dict[str, Any],
) -> History:
    folder, settings = run_dir(), cfg.callbacks
    assert subject.tokenizer is not None
    history = History(settings.history_every, WATCHED[cfg.tune.name])
    callbacks: list[Any] = [history, FiniteLoss(setting="tune.lr")]
    if cfg.tune.freeze:
        callbacks.append(Frozen(subject, list(cfg.tune.freeze)))  # ahead of what saves the model
    measure = watched.figures if watched else _nothing
    callbacks.append(CheckpointFolders(folder / "checkpoints", steps, subject.tokenizer, measure))
    if watched and cfg.tune.probe_every:
        callbacks.append(Probe(watched, cfg.tune.probe_every, history))
    callbacks.append(ProgressLines(aloud=not settings.progress_bar))
    if settings.progress_bar:
        callbacks.append(Progress(refresh_rate=1))
    if settings.checkpoint_every:
        callbacks.append(Checkpoints(folder / "checkpoints", settings.checkpoint_every, "resume", keep=1))
    callbacks += [TrainedWith(trained), StopOnSignal(folder / "checkpoints")]
    loggers, device = build_loggers(cfg), subject.device
    trainer: Trainer = instantiate(
        cfg.trainer, logger=loggers, callbacks=callbacks, **instantiate(cfg.strategy.options)
    )
    try:
        trainer.fit(tuner, data, ckpt_path=cfg.ckpt_path, weights_only=True)
    finally:
        address = close_loggers(loggers)
        if address:
            CONSOLE.print(f"  W&B: {address}", highlight=False)
    stopping.end_of_patience()
    tuner.to(device)  # Lightning leaves it on the CPU
    return history


class Probe(Callback):
    """Now and then tests the model on validation pairs.

    Args:
        pairs: the pairs.
        every: steps between two looks.
        history: where the figures go, beside the logger.
    """

    def __init__(self, pairs: HeldOut, every: int, history: History) -> None:
        self.pairs, self.every, self.history = pairs, every, history
        self._seen = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the start."""
        if trainer.global_step == 0:
            self._look(trainer, pl_module)
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure when it is time."""
        if trainer.global_step % self.every == 0 and trainer.global_step > self._seen:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, tuner: LightningModule) -> None:
        assert isinstance(tuner, Tuner)
        self._seen = trainer.global_step
        figures = {f"val_{name}": value for name, value in self.pairs.figures(tuner.model).items()}
        self.history.add(trainer.global_step, **figures)
        for logger in trainer.loggers:
            logger.log_metrics({name.replace("_", "/", 1): v for name, v in figures.items()}, step=trainer.global_step)


def _nothing(_model: nn.Module) -> dict[str, float]:
    return {}


def _count(model: nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def trained_share(model: nn.Module) -> str:
    """How much of a model is trained, in words."""
    trained, whole = _count(model, trained=True), _count(model, trained=False)
    return f"{trained:,} of {whole:,} parameters"
