"""Does the model do the tasks? The full model alone, on several tasks and splits, ahead of any search."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli.ability import inability
from circuitlit.cli.build import build_subject, encoded, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import task_settings
from circuitlit.errors import UserError
from circuitlit.evaluate import Behaviour
from circuitlit.files import write_json
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.ability import print_ability
from circuitlit.tasks.splits import SPLITS


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measure every task and write `behaviour.json` into the run directory.

    Raises:
        UserError: a setting or a model that cannot be used, or a task that cannot be built for its tokenizer.
    """
    settings = cfg.behaviour
    wrong = [split for split in settings.splits if split not in SPLITS]
    if wrong or not settings.splits:
        raise UserError(f"behaviour.splits={list(settings.splits)} are not some of {', '.join(SPLITS)}")
    if settings.pairs < 1:
        raise UserError(f"behaviour.pairs={settings.pairs} is below 1; raise it")
    tasks = task_settings(settings.tasks, "behaviour.tasks") or {cfg.task.name: cfg}
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name}"):
        subject = build_subject(cfg)
    rows = []
    for name, own in tasks.items():
        with clock.phase(name, f"Asking it {name}"):
            rows += _task(name, own, subject, list(settings.splits), settings.pairs)
    result = {"model": cfg.model.name, "rows": rows, **clock.times(), "provenance": provenance(cfg, subject)}
    write_json(run_dir() / "behaviour.json", result)
    print_ability(result, CONSOLE)
    CONSOLE.print(f"{run_dir() / 'behaviour.json'}", highlight=False, soft_wrap=True)
    return result


def _task(name: str, cfg: DictConfig, subject: Subject, splits: list[str], most: int) -> list[dict[str, Any]]:
    """One row a split that has pairs."""
    data = encoded(cfg, instantiate(cfg.task.build)(tokenizer=subject.tokenizer), subject)
    rows = []
    for split in splits:
        pairs = getattr(data, split)
        order = sorted(range(min(most, len(pairs))), key=pairs.lengths.__getitem__)
        if order:
            found = Behaviour.measure(subject, pairs.batches(cfg.data.eval_batch_size, order=order))
            facts = {"task": name, "split": split, "min_accuracy": cfg.task.get("min_accuracy", 0)}
            rows.append({**facts, "reason": inability(cfg, found), **found.to_dict()})
    return rows
