"""Before any search: does the model do the task? A task that it cannot do is reported, not searched."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from circuitlit.cli.build import provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.ranks import is_writer
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import Behaviour
from circuitlit.files import write_json
from circuitlit.progress import CONSOLE, Clock


def measure_behaviour(cfg: DictConfig, bench: Workbench) -> Behaviour:
    """The full model on the validation pairs, or on the training pairs where there are none."""
    pairs = bench.data.val if len(bench.data.val) else bench.data.train
    return Behaviour.measure(bench.subject, pairs.batches(cfg.data.eval_batch_size, order=pairs.by_length()))


def inability(cfg: DictConfig, behaviour: Behaviour) -> str | None:
    """Why the model is not to be searched for this task, or None."""
    return behaviour.verdict(cfg.task.get("min_accuracy", 0))


def report_inability(
    cfg: DictConfig, bench: Workbench, behaviour: Behaviour, reason: str, clock: Clock
) -> dict[str, Any]:
    """Write a result without a circuit and print why; the run ends well, because this is a finding.

    Fields that speak of a circuit are null.
    """
    result = {
        "status": "FAILED",
        "reason": reason,
        "task": cfg.task.name,
        "model": cfg.model.name,
        "method": None,
        "ablation": cfg.ablation.kind,
        "seed": cfg.seed,
        "steps": 0,
        "n_edges_total": bench.layout.n_edges,
        "n_edges": None,
        "n_edges_reachable": None,
        "sparsity": None,
        "behaviour": behaviour.to_dict(),
        **clock.times(),
        "provenance": provenance(cfg, bench.subject),
    }
    if is_writer():
        write_json(run_dir() / "result.json", result)
    CONSOLE.print(f"FAILED: {reason}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    return result
