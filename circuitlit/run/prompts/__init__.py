"""Circuits of one behaviour under several prompts: what they share, and each of them under every prompt."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.build import build_bars, provenance
from circuitlit.cli.configs import ONE_MODEL
from circuitlit.cli.finish import finish, prepare
from circuitlit.cli.sides import task_settings
from circuitlit.compare.prompts import PromptComparison, compare_prompts
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.graph import Circuit
from circuitlit.progress import phase
from circuitlit.report.prompts import print_prompts, write_prompts
from circuitlit.run.prompts.makers import able, kept_circuit, least_accuracy


def run(cfg: DictConfig) -> PromptComparison | None:
    """Make a circuit for each of `prompts.tasks`, evaluate all on all, write `prompts.json` and a page.

    Where the model cannot do a task it is tuned first, if `prompts.tune` says how. What is finished is not made again
    by a second run in the same directory. None in a process that does not write.
    """
    tasks = task_settings(cfg.prompts.tasks, "prompts.tasks", ONE_MODEL)
    if cfg.mask.roles:
        raise UserError("mask.roles=true: token roles differ between prompts; use mask.roles=false")
    prepare(cfg, cfg.matmul_precision if torch.cuda.is_available() else "highest")
    with phase("load", f"Loading {cfg.model.name}, and asking whether it can do {' and '.join(tasks)}"):
        asked = able(cfg, tasks)
    facts = provenance(cfg, asked.subject)

    def find(name: str, bench: Workbench) -> Circuit | None:
        circuit = kept_circuit(tasks[name], name, bench, facts, asked.tuning)
        return circuit if name != [*tasks][-1] or ranks.one_goes_on(bench) else None

    result = compare_prompts(
        asked.benches,
        find,
        draws=cfg.prompts.draws,
        bars=build_bars(cfg),
        min_accuracy=least_accuracy(tasks),
        behaviour=asked.behaviour,
        untuned=asked.untuned,
        seed=cfg.seed,
    )
    if result is None or not ranks.is_writer():
        return None
    result = result.replaced(model=cfg.model.name)
    return finish(cfg, result, facts, write_prompts if result.circuits else None, print_prompts)
