"""What any saved circuit does: example prompts, and the heads that matter."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from circuitlit.cli.build import build_subject, build_workbench
from circuitlit.cli.finish import finish, own_settings, prepare
from circuitlit.errors import UserError
from circuitlit.graph import load_circuit
from circuitlit.heads.explain.explain_circuit import explain_circuit
from circuitlit.heads.explain.explanation import Explanation
from circuitlit.progress import phase
from circuitlit.report import write_page
from circuitlit.report.explanation import print_explanation


def run(cfg: DictConfig) -> Explanation:
    """Write `explanation.json` into the run directory; if `circuit` is a run's folder, there too, and its page anew."""
    if cfg.explain is None:
        raise UserError("explain=null leaves nothing to do; leave that setting out")
    prepare(cfg)
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        subject = build_subject(cfg)
        circuit = load_circuit(cfg.circuit, subject.graph)
        bench = build_workbench(cfg, subject)
    if not circuit.n_edges:
        circuit = bench.cut(circuit.scores, circuit.provenance)
    found = explain_circuit(bench, circuit, seed=cfg.seed, **own_settings(cfg.explain))
    return finish(cfg, found, subject, lambda result, _: _on_the_page(result, Path(cfg.circuit)), print_explanation)


def _on_the_page(result: Explanation, run: Path) -> list[Path]:
    if not (run / "result.json").is_file():
        return []
    result.save(run)
    return [write_page(run)]
