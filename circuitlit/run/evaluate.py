"""Any saved circuit, ours or another tool's, evaluated on any task and model."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from circuitlit.cli.build import BARS, build_bars, build_subject, build_workbench, provenance
from circuitlit.cli.finish import finish_circuit, own_settings, prepare
from circuitlit.cli.folder import begin
from circuitlit.errors import UserError
from circuitlit.evaluate import load_reference
from circuitlit.evaluate.evaluation import evaluate_circuit
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.graph import load_circuit
from circuitlit.progress import CONSOLE, phase
from circuitlit.report.curve import print_curve


def run(cfg: DictConfig) -> FoundCircuit:
    """Evaluate `circuit` on the test pairs of `task` and write result and page into the run directory."""
    if not Path(cfg.circuit).exists():
        raise UserError(f"circuit={cfg.circuit} does not exist; name a run's folder or a circuit file")
    prepare(cfg)
    settings = own_settings(cfg.evaluate, *BARS, "baselines", "reference")
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        subject = build_subject(cfg)
        found = load_circuit(cfg.circuit, subject.graph)
        reference = load_reference(cfg.evaluate.reference, subject.graph) if cfg.evaluate.reference else None
        bench = build_workbench(cfg, subject)
    begin(cfg)
    result = evaluate_circuit(bench, found, reference=reference, bars=build_bars(cfg), seed=cfg.seed, **settings)
    result = result.replaced(circuit={"path": str(cfg.circuit), "provenance": found.provenance})
    result = finish_circuit(cfg, result, provenance(cfg, subject))
    if result.curve is not None:
        print_curve(result.curve, CONSOLE)
    return result
