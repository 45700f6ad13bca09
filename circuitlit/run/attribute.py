"""One attribution method: scores of all edges, the circuit cut from them, evaluation, page."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.build import attribute, build_bars, build_subject, build_workbench, device_of, provenance
from circuitlit.cli.finish import finish_circuit, prepare
from circuitlit.cli.folder import begin
from circuitlit.evaluate.find import ask, unable
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.evaluate.verdict import measure_circuit
from circuitlit.progress import phase


def run(cfg: DictConfig) -> FoundCircuit | None:
    """Score all edges by `method`, cut a circuit of `sparsity` and write everything into the run directory.

    In Python `attribute_circuit` does the same. None in a process that does not write.
    """
    prepare(cfg)
    ranks.join(device_of(cfg))
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = build_workbench(cfg, build_subject(cfg))
    begin(cfg)
    facts = provenance(cfg, bench.subject)
    behaviour, reason = ask(bench, cfg.task.get("min_accuracy", 0))
    if reason:
        return finish_circuit(cfg, unable(bench, behaviour, reason, cfg.seed), facts)
    with phase("attribution", f"Scoring {bench.layout.n_edges:,} edges by {cfg.method.name}"):
        scores = attribute(cfg, bench, shared=True)
    if not ranks.one_goes_on(bench):
        return None
    with phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        result = measure_circuit(bench, bench.cut(scores, facts), bars=build_bars(cfg), seed=cfg.seed)
    return finish_circuit(cfg, result.replaced(behaviour=behaviour.to_dict()), facts) if ranks.is_writer() else None
