"""What a model knows (facts, language, reasoning), and which heads look facts up, beside random heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import encoded, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_base, task_settings
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import benjamini_hochberg, enough_draws, paired_p, with_holm
from circuitlit.files import write_json
from circuitlit.finetune import HeldOut
from circuitlit.heads import PatchBed, causal_check
from circuitlit.heads.causal import Behaviour, metric_of_pairs
from circuitlit.heads.knowledge import READ, ROLES, RoleHead, blocking, role_effects
from circuitlit.heads.roles import head_name
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.knowledge import print_knowledge, write_knowledge
from circuitlit.run.inject import run_injection
from circuitlit.tasks import EncodedPairs

LEAST_PAIRS = 4


def run(cfg: DictConfig) -> dict[str, Any]:
    """Test all packs, find heads, and write `knowledge.json` and a page into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    if cfg.knowledge.inject is not None:
        return run_injection(cfg)
    packs = {pack: task_settings(tasks, f"knowledge.packs.{pack}") for pack, tasks in cfg.knowledge.packs.items()}
    if not any(packs.values()):
        raise UserError("knowledge.packs names no task; name some, such as knowledge.packs.factual=[factual]")
    clock, found = Clock(), {}
    with clock.phase("load", "Loading the model"):
        subject = load_base(cfg)
    for pack, tasks in packs.items():
        for name, own in tasks.items():
            with clock.phase(f"task_{name}", f"{pack}: {name}"):
                found[name] = {"pack": pack, **_task(own, subject)}
    result = {
        "model": subject.name,
        "seed": cfg.seed,
        "settings": plain(cfg.knowledge),
        "tasks": with_holm(found),
        **clock.times(),
        "provenance": provenance(cfg, subject),
    }
    write_json(run_dir() / "knowledge.json", result)
    page = write_knowledge(run_dir())
    print_knowledge(result, CONSOLE)
    for path in (run_dir() / "knowledge.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _task(cfg: DictConfig, subject: Subject) -> dict[str, Any]:
    """How well the model does a task, by group of pairs; and the heads, where the task has subjects and relations."""
    splits = instantiate(cfg.task.build)(tokenizer=subject.tokenizer)
    data = encoded(cfg, splits, subject)
    accuracy, shared, kept, groups = [], [], {}, {}
    for name in ("train", "test"):
        pairs: EncodedPairs = getattr(data, name)
        outcome = HeldOut(subject.model, pairs, cfg.data.eval_batch_size, subject.device).base
        right = outcome.accuracy.bool().tolist()
        kept[name] = [place for place, good in enumerate(right) if good]
        accuracy.append(outcome.accuracy)
        shared.append(outcome.group + sum(map(len, shared)))
        for pair, good in zip(getattr(splits, name), right, strict=True):
            groups.setdefault(pair.template.split("/")[0] or "all", []).append(good)
    result: dict[str, Any] = {
        "n_pairs": sum(map(len, accuracy)),
        "accuracy": asdict(mean_estimate(torch.cat(accuracy), torch.cat(shared))),
        "answered": {name: len(rows) for name, rows in kept.items()},
        "groups": {name: {"n": len(own), "answered": sum(own)} for name, own in sorted(groups.items())},
        "roles": None,
    }
    enough = min(len(rows) for rows in kept.values()) >= LEAST_PAIRS
    if {"subject", "relation"} <= set(splits.role_names) and enough:
        train, test = (_bed(cfg, subject, getattr(data, name), rows) for name, rows in kept.items())
        result["roles"] = _roles(cfg, train, test, splits.role_names)
    return result


def _bed(cfg: DictConfig, subject: Subject, pairs: EncodedPairs, rows: Sequence[int]) -> PatchBed:
    """Answered pairs, spread evenly over the split."""
    step = max(1, len(rows) // cfg.knowledge.pairs)
    chosen = list(rows)[::step][: cfg.knowledge.pairs]
    return PatchBed.build(subject, pairs.batches(cfg.data.eval_batch_size, order=chosen))


def _roles(cfg: DictConfig, bed: PatchBed, test: PatchBed, role_names: Sequence[str]) -> dict[str, Any]:
    """Heads of each role, chosen on training pairs and checked on test pairs against random heads of their layers."""
    settings, found = cfg.knowledge, {}
    draws = settings.draws or enough_draws(len(ROLES))
    for role in ROLES:
        tried = role_effects(bed, role_names, role, settings.candidates)
        q = benjamini_hochberg([paired_p(entry.drop, entry.groups) for entry in tried])
        real = [
            (entry, value)
            for entry, value in zip(tried, q, strict=True)
            if value <= settings.alpha and entry.share >= settings.least
        ][: settings.top]
        check = None
        if real:
            heads = [entry.head for entry, _ in real]
            check = _checked(
                asdict(causal_check(_behaviour(test, role_names, role), test.graph, heads, draws, groups=test.groups))
            )
        found[role] = {"heads": [_listed(entry, value) for entry, value in real], "tried": len(tried), "check": check}
    return found


def _behaviour(bed: PatchBed, role_names: Sequence[str], role: str) -> Behaviour:
    if role == "retrieval":
        return metric_of_pairs(bed, "interchange")
    return blocking(bed.heads, bed.batches, role_names, READ[role])


def _listed(entry: RoleHead, q: float) -> dict[str, Any]:
    return {
        "head": entry.name,
        "drop": asdict(entry.estimate),
        "share": entry.share,
        "attention": entry.attention,
        "q": q,
    }


def _checked(check: dict[str, Any]) -> dict[str, Any]:
    return {**check, "heads": [head_name(head) for head in check["heads"]]}
