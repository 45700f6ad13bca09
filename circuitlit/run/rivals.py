"""Rivals of any saved circuit: others of its size that share some of its edges, down to none."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.cli.build import build_pairs, build_subject, build_workbench
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.cli.sides import task_settings
from circuitlit.evaluate.trust.find_rivals import find_rivals
from circuitlit.evaluate.trust.rivals import Rivals
from circuitlit.graph import load_circuit
from circuitlit.progress import phase
from circuitlit.report.rivals import print_rivals, write_rivals


def run(cfg: DictConfig) -> Rivals:
    """Search rivals of `circuit` and write `rivals.json` and a page into the run directory."""
    prepare(cfg)
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        subject = build_subject(cfg)
        bench, circuit = build_workbench(cfg, subject), load_circuit(cfg.circuit, subject.graph)
        tasks = task_settings(cfg.rivals.tasks, "rivals.tasks") if cfg.rivals.tasks else {}
        others = {name: build_pairs(settings, subject) for name, settings in (tasks or {}).items()}
    if not circuit.n_edges:
        circuit = bench.cut(circuit.scores, circuit.provenance)
    found = find_rivals(
        bench,
        circuit,
        schedule=instantiate(cfg.mask.schedule),
        gates=instantiate(cfg.mask.gates),
        others=others,
        folder=run_dir() / "rivals",
        seed=cfg.seed,
        **own_settings(cfg.rivals, "tasks"),
    )
    return finish(cfg, found, subject, write_rivals, print_rivals)
