"""Circuits of one behaviour under several prompts: what they share, and each of them under every prompt.

Source: the case study of Edge Pruning (arXiv 2406.16778) section 5, instruction and few-shot circuits of CodeLlama.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from hydra import compose
from jaxtyping import Bool
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from circuitlit.cli import ranks
from circuitlit.cli.ability import inability
from circuitlit.cli.arguments import setting
from circuitlit.cli.build import attribute, build_subject, build_workbench, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.learn import learn
from circuitlit.cli.sides import load_side, task_settings
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, random_circuit, summarise
from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.evaluate.find import ask
from circuitlit.evaluate.overlap import TESTS, shared_by_pairs
from circuitlit.evaluate.testing import LEVEL, enough_draws, rank_p, with_holm
from circuitlit.evaluate.verdict import held_out
from circuitlit.files import write_json
from circuitlit.graph import Circuit
from circuitlit.masked import MaskedModel
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.prompts import print_prompts, write_prompts
from circuitlit.run import tune

Kept = Bool[Tensor, "copies edge"]


@dataclass(frozen=True)
class _Prompt:
    """One prompt's task: settings, pairs and masked model, and how well the full model does it."""

    name: str
    cfg: DictConfig
    bench: Workbench
    behaviour: Behaviour


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make a circuit for each of `prompts.tasks`, evaluate all on all, write `prompts.json` and a page.

    Where the model cannot do a task it is tuned first, if `prompts.tune` says how. What is finished is not made again
    by a second run in the same directory.

    Returns:
        The result; nothing in a process that does not write.

    Raises:
        UserError: settings that cannot be used, or a model that cannot be loaded.
    """
    tasks = task_settings(cfg.prompts.tasks, "prompts.tasks")
    if len(tasks) < 2:
        raise UserError("prompts.tasks needs at least two tasks: one behaviour asked for in several ways")
    if cfg.mask.roles:
        raise UserError("mask.roles=true: token roles differ between prompts; use mask.roles=false")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision if torch.cuda.is_available() else "highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name}, and asking whether it can do {' and '.join(tasks)}"):
        subject, prompts, untuned = _able(cfg, tasks)
    facts = provenance(cfg, subject)
    result: dict[str, Any] = {
        "status": "FAILED",
        "model": cfg.model.name,
        "ablation": cfg.ablation.kind,
        "seed": cfg.seed,
        "tuned": untuned is not None,
        "untuned_behaviour": untuned,
        "behaviour": {prompt.name: prompt.behaviour.to_dict() for prompt in prompts},
    }
    reason = next((why for prompt in prompts if (why := inability(prompt.cfg, prompt.behaviour))), None)
    if reason is None:
        circuits = {}
        for prompt in prompts:
            with clock.phase(f"circuit_{prompt.name}", f"Training the masks of {prompt.name}"):
                circuits[prompt.name] = _circuit(prompt, facts)
        if prompts[0].bench.model.shards is None:
            ranks.leave()
            if not ranks.is_writer():
                return {}
        with clock.phase("evaluation", "Every circuit under every prompt"):
            torch.set_float32_matmul_precision("highest")
            result |= _table(cfg, prompts, circuits)
        reason = _shortfall(cfg, result)
    if not ranks.is_writer():
        return {}
    result |= {"status": "FAILED" if reason else "OK", "reason": reason, **clock.times(), "provenance": facts}
    write_json(run_dir() / "prompts.json", result)
    print_prompts(result, CONSOLE)
    written = [run_dir() / "prompts.json"] + ([write_prompts(run_dir())] if "rows" in result else [])
    for path in written:
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _able(
    cfg: DictConfig, tasks: dict[str, DictConfig]
) -> tuple[Subject, list[_Prompt], dict[str, dict[str, Any]] | None]:
    """A model for all prompts, and what the untuned one could do if it had to be tuned."""
    tuned = run_dir() / "tuned"
    known = run_dir() / "untuned.json"
    if tuned.is_dir() and known.is_file():
        subject = load_side(cfg, str(tuned), "tuned")
        return subject, _prompts(tasks, subject), json.loads(known.read_text())
    subject = build_subject(cfg)
    prompts = _prompts(tasks, subject)
    if cfg.prompts.tune is None or not any(inability(prompt.cfg, prompt.behaviour) for prompt in prompts):
        return subject, prompts, None
    if ranks.world() > 1:
        raise UserError("the model cannot do the task and tuning runs on one device; set strategy=single for this run")
    untuned = {prompt.name: prompt.behaviour.to_dict() for prompt in prompts}
    for prompt in prompts:
        CONSOLE.print(f"  {prompt.name}: {inability(prompt.cfg, prompt.behaviour)}", style="dim", highlight=False)
    del subject, prompts
    _tune(cfg)
    write_json(known, untuned)
    subject = load_side(cfg, str(tuned), "tuned")
    return subject, _prompts(tasks, subject), untuned


def _prompts(tasks: dict[str, DictConfig], subject: Subject) -> list[_Prompt]:
    made: list[_Prompt] = []
    model: MaskedModel | None = None
    for name, own in tasks.items():
        bench = build_workbench(own, subject, model)
        model = bench.model
        made.append(_Prompt(name, own, bench, ask(bench, aloud=False)[0]))
    return made


def _tune(cfg: DictConfig) -> None:
    """Run `finetune` in this run's directory, with the settings of `prompts.tune` on this run's model."""
    settings = compose("finetune", [setting("finetune", str(word)) for word in cfg.prompts.tune])
    OmegaConf.set_struct(settings, False)
    for group in ("model", "paths"):
        settings[group] = plain(cfg[group])
    settings.seed, settings.callbacks.progress_bar = cfg.seed, cfg.callbacks.progress_bar
    settings.callbacks.checkpoint_every, settings.trainer.accelerator = 0, cfg.trainer.accelerator
    settings.trainer.enable_checkpointing = False
    tune.run(settings)
    for name in ("result", "history"):
        (run_dir() / f"{name}.json").replace(run_dir() / f"tuning_{name}.json")


def _circuit(prompt: _Prompt, facts: dict[str, Any]) -> Circuit:
    """The prompt's circuit: read if it is there, else learned, from the last checkpoint on if there is one."""
    folder = run_dir() / "circuits" / prompt.name
    if (folder / "circuit.json").is_file():
        return Circuit.load(folder)
    bench, own = prompt.bench, prompt.cfg.copy()
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        own.ckpt_path = str(last)
    attribution = attribute(own, bench)
    learner, _ = learn(own, bench, attribution, folder)
    own_facts: dict[str, object] = {**facts, "task": plain(prompt.cfg.task)}
    circuit = bench.cut(learner.scores(), own_facts)
    if ranks.is_writer():
        folder.mkdir(parents=True, exist_ok=True)
        circuit.save(folder)
    return circuit


def _table(cfg: DictConfig, prompts: list[_Prompt], circuits: dict[str, Circuit]) -> dict[str, Any]:
    """All circuits, what they share and what they have together, under all prompts; and their overlaps."""
    kept = {name: circuit.kept for name, circuit in circuits.items()}
    sets: dict[str, Kept] = {**kept, "intersection": reduce(torch.logical_and, kept.values())}
    sets["union"] = reduce(torch.logical_or, kept.values())
    graph = next(iter(circuits.values())).graph
    sizes = sorted({circuit.n_edges for circuit in circuits.values()})
    draws = cfg.prompts.draws or enough_draws(_claims(len(prompts)))
    columns, pairs, chance = {}, {}, {}
    for prompt in prompts:  # one after the other: the references of all held-out pairs are large
        bed = held_out(prompt.bench)
        pairs[prompt.name] = len(bed.full.kl)
        columns[prompt.name], chance[prompt.name] = _column(cfg, bed, sets, sizes, prompt.name, draws)
        del bed
    edges = [graph.n_edges, *(int(chosen.sum()) for chosen in sets.values()), *sizes, 0]
    labels = ["full model", *sets, *(f"random, mean of {draws}" for _ in sizes), "corrupted run"]
    rows = [
        {"circuit": label, "n_edges": number, "on": {name: column[place] for name, column in columns.items()}}
        for place, (label, number) in enumerate(zip(labels, edges, strict=True))
    ]
    found = {
        "tasks": list(columns),
        "n_pairs": pairs,
        "n_edges_total": graph.n_edges,
        "rows": rows,
        "chance": chance,
        "overlap": _overlaps(cfg, circuits),
    }
    return with_holm(found)


def _claims(prompts: int) -> int:
    """Claims of a page: what every two circuits share, and that every circuit is better than random ones."""
    return TESTS * prompts * (prompts - 1) // 2 + prompts


def _column(
    cfg: DictConfig, bed: TestBed, sets: dict[str, Kept], sizes: list[int], own: str, draws: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Full model, circuits, random circuits and corrupted run under one prompt; its own circuit beside random ones.

    Random circuits are measured on some pairs of every sentence, and the own circuit is compared on the same ones.
    """
    few = min(max(cfg.evaluate.control_pairs, len(bed.full.group.unique())), len(bed.full.kl))
    found = {name: bed.run(kept) for name, kept in sets.items()}
    random = {
        size: [bed.run(random_circuit(bed.model.graph, size, seed), few) for seed in range(draws)] for size in sizes
    }
    kl, *others = (float(one.head(few).kl.mean()) for one in (found[own], *random[int(sets[own].sum())]))
    chance = {
        "n_pairs": few,
        "kl": kl,
        "random_kl": sum(others) / len(others),
        "draws": draws,
        "rank_p": rank_p(-kl, [-other for other in others]),
    }
    groups = [[bed.full], *([outcome] for outcome in found.values()), *random.values(), [bed.corrupted]]
    return [summarise(outcomes, bed.full, bed.corrupted).to_dict() for outcomes in groups], chance


def _overlaps(cfg: DictConfig, circuits: dict[str, Circuit]) -> list[dict[str, Any]]:
    """What every two circuits share, beside chance."""
    found = shared_by_pairs(circuits, cfg.seed, others=len(circuits))
    return [
        {"of": [one, two], "shared": int((circuits[one].kept & circuits[two].kept).sum()), **shared.to_dict()}
        for (one, two), shared in found.items()
    ]


def _shortfall(cfg: DictConfig, result: dict[str, Any]) -> str | None:
    """Why a circuit misses its bar under its own prompt, or None."""
    rows = {row["circuit"]: row["on"] for row in result["rows"]}
    for name in result["tasks"]:
        kl, worst = (rows[label][name]["kl"]["value"] for label in (name, "corrupted run"))
        if kl > cfg.evaluate.max_kl_share * worst:
            return f"the circuit of {name} has a KL of {kl:.3f} nats, the corrupted run {worst:.3f}"
        beside = result["chance"][name]
        if beside["p_holm"] >= LEVEL:
            return (
                f"the circuit of {name} is not better than {beside['draws']} random ones beyond chance "
                f"(p = {beside['p_holm']:.2g})"
            )
    return None
