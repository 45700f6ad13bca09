"""Circuits of several tasks on each other's pairs, and why a tuned model got worse at some."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from circuitlit.cli.build import attribute, build_workbench
from circuitlit.cli.configs import ONE_MODEL
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import load_base, load_both, task_settings
from circuitlit.cli.tuned import tuned_copy
from circuitlit.compare.cross_tasks import Generality, measure_generality
from circuitlit.compare.prevention import Prevention, compare_freezing
from circuitlit.errors import UserError
from circuitlit.finetune import examples_of_task
from circuitlit.graph import Circuit, load_circuit
from circuitlit.progress import phase
from circuitlit.report.generality import print_generality, write_generality


def run(cfg: DictConfig) -> Generality:
    """Measure all circuits on all tasks and write `generality.json` and a page into the run directory."""
    own = own_settings(cfg.generality, "tasks", "circuits", "prevent")
    tasks = task_settings(cfg.generality.tasks, "generality.tasks", ONE_MODEL)
    paths = list(cfg.generality.circuits) if isinstance(cfg.generality.circuits, ListConfig) else [None] * len(tasks)
    if len(paths) != len(tasks):
        raise UserError(f"generality.circuits names {len(paths)} circuits for {len(tasks)} tasks; name one for each")
    prepare(cfg)
    with phase("load", "Loading the model"):
        base, tuned = (load_base(cfg), None) if cfg.tuned is None else load_both(cfg)
    made = {}
    for (name, settings), path in zip(tasks.items(), paths, strict=True):
        with phase(f"scores_{name}", f"Circuit of {name}"):
            bench = build_workbench(settings, base)
            made[name] = bench, load_circuit(path, base.graph).scores if path else attribute(settings, bench)

    def prevent(circuits: Mapping[str, Circuit]) -> Prevention:
        plan = own_settings(cfg.generality.prevent)
        assert base.tokenizer is not None
        splits = {name: instantiate(task.task.build)(tokenizer=base.tokenizer) for name, task in tasks.items()}
        examples = {name: examples_of_task(split, base.tokenizer) for name, split in splits.items()}
        with phase("prevention", f"Tuning on {plan['tune_on']} with nodes frozen, and without"):
            tune, size = partial(tuned_copy, cfg), cfg.data.eval_batch_size
            return compare_freezing(base, examples, circuits, tune, steps=cfg.tune.steps, batch_size=size, **plan)

    wanted = cfg.generality.prevent.tune_on is not None
    result = measure_generality(made, tuned, prevent=prevent if wanted else None, seed=cfg.seed, **own)
    return finish(cfg, result, base, write_generality, print_generality)
