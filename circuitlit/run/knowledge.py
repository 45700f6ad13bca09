"""What a model knows (facts, language, reasoning): the circuits, and the nodes that carry it, beside random ones."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import build_method, build_pairs, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import load_base, load_side, task_settings
from circuitlit.compare.injected_facts import FactInjection, inject_facts
from circuitlit.compare.known_facts import Knowledge, measure_knowledge
from circuitlit.errors import UserError
from circuitlit.model import Subject
from circuitlit.progress import phase
from circuitlit.report.injection import print_injection, write_injection
from circuitlit.report.knowledge import print_knowledge, write_knowledge
from circuitlit.run import tune


def run(cfg: DictConfig) -> Knowledge | FactInjection:
    """Test all packs and find heads, or tune facts in, and write the result and a page into the run directory.

    Tasks of the packs are kept one by one.

    Raises:
        UserError: no task, a task in two packs, or settings of circuits that it does not find.
    """
    prepare(cfg)
    if cfg.knowledge.inject is not None:
        return _injected(cfg)
    packs = {pack: task_settings(tasks, f"knowledge.packs.{pack}") for pack, tasks in cfg.knowledge.packs.items()}
    if not any(packs.values()):
        raise UserError("knowledge.packs names no task; name some, such as knowledge.packs.factual=[factual]")
    sought = (cfg.ablation.kind, cfg.sparsity.select, cfg.mask.sites, cfg.mask.roles)
    if sought != ("interchange", "top_k", "edges", False):
        raise UserError(
            "knowledge finds circuits of edges by top_k under ablation=interchange; leave ablation, sparsity.select, "
            "mask.sites and mask.roles as they are"
        )
    with phase("load", "Loading the model"):
        subject = load_base(cfg)
    made = {pack: {name: build_pairs(own, subject) for name, own in tasks.items()} for pack, tasks in packs.items()}
    result = measure_knowledge(
        subject,
        made,
        method=build_method(cfg),
        sparsity=cfg.sparsity.target,
        min_accuracy={name: own.task.get("min_accuracy", 0) for tasks in packs.values() for name, own in tasks.items()},
        folder=run_dir() / "tasks",
        seed=cfg.seed,
        **own_settings(cfg.knowledge, "packs", "inject"),
    )
    return finish(cfg, result, subject, write_knowledge, print_knowledge)


def _injected(cfg: DictConfig) -> FactInjection:
    def tuned(path: str) -> tuple[Subject, dict]:
        own = cfg.copy()
        own.tune.data = path
        found = tune.run(own).to_dict()
        prepare(cfg)  # tuning may have lowered the precision
        return load_side(cfg, str(run_dir()), "tuned"), found

    with phase("load", "Loading the model and asking it what it knows"):
        base = load_base(cfg)
    more = {"seed": cfg.seed, "batch_size": cfg.data.eval_batch_size}
    result = inject_facts(base, tuned, run_dir(), **more, **own_settings(cfg.knowledge.inject))
    facts = {name: value for name, value in provenance(cfg, base).items() if name != "task"}  # its facts are its task
    return finish(cfg, result, facts, write_injection, print_injection)
