"""One attribution method: scores of all edges, the circuit cut from them, evaluation, page."""

from __future__ import annotations

from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.ability import inability, measure_behaviour, report_inability
from circuitlit.cli.build import attribute, build_subject, build_workbench, device_of, provenance
from circuitlit.cli.folder import begin
from circuitlit.progress import Clock
from circuitlit.run.result import make_result, publish


def run(cfg: DictConfig) -> dict[str, Any]:
    """Score all edges by `method`, cut a circuit of `sparsity` and write everything into the run directory.

    Returns:
        The result; nothing in a process that does not write.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    ranks.join(device_of(cfg))
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = build_workbench(cfg, build_subject(cfg))
    begin(cfg)
    with clock.phase("behaviour", "Checking that the model does the task"):
        behaviour = measure_behaviour(cfg, bench)
    if reason := inability(cfg, behaviour):
        return report_inability(cfg, bench, behaviour, reason, clock)
    with clock.phase("attribution", f"Scoring {bench.layout.n_edges:,} edges by {cfg.method.name}"):
        scores = attribute(cfg, bench, shared=True)
    if bench.model.shards is None:  # sharded weights need all processes in every forward
        ranks.leave()
        if not ranks.is_writer():
            return {}
    facts = provenance(cfg, bench.subject)
    circuit = bench.cut(scores, facts)
    with clock.phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        result = make_result(cfg, bench, circuit)
    if not ranks.is_writer():
        return {}
    more = {**clock.times(), "provenance": facts, "behaviour": behaviour.to_dict()}
    return publish(circuit, {"steps": 0, **result, **more})
