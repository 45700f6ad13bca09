"""Ablation, transfer and scaling of nodes, beside matched random ones, on the task, other tasks and other text."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli.build import attribute, build_workbench
from circuitlit.cli.configs import ONE_MODEL
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import component_kinds, load_base, load_side, passages, task_settings
from circuitlit.compare.interventions import Interventions, intervene_on_nodes
from circuitlit.graph import load_circuit
from circuitlit.progress import phase
from circuitlit.report.interventions import print_interventions, write_interventions


def run(cfg: DictConfig) -> Interventions:
    """Intervene and write `intervene.json` and a page into the run directory."""
    others = task_settings(cfg.intervene.other_tasks, "intervene.other_tasks", ONE_MODEL)
    prepare(cfg)
    with phase("load", "Loading the model and the pairs"):
        subject = load_base(cfg)
        tuned = None if cfg.tuned is None else load_side(cfg, cfg.tuned, "tuned")
        bench = build_workbench(cfg, subject)
        kinds = component_kinds(cfg.heads, subject.graph)
        found = load_circuit(cfg.circuit, subject.graph) if cfg.circuit else None
        circuit = found if found and found.n_edges else bench.cut(found.scores if found else attribute(cfg, bench))
    size = cfg.intervene.passages
    result = intervene_on_nodes(
        bench,
        circuit,
        tuned=tuned,
        other_tasks={name: build_workbench(other, subject) for name, other in others.items()},
        kinds=kinds,
        text=passages(cfg, subject, size.count, size.length),
        text_source=cfg.text or "sampled from the model",
        seed=cfg.seed,
        **own_settings(cfg.intervene, "other_tasks", "passages"),
    )
    return finish(cfg, result, subject, write_interventions, print_interventions)
