"""Before any search: does the model do the task? A task that it cannot do is reported, not searched."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import Behaviour


def measure_behaviour(cfg: DictConfig, bench: Workbench) -> Behaviour:
    """The full model on the validation pairs, or on the training pairs where there are none."""
    pairs = bench.data.val if len(bench.data.val) else bench.data.train
    return Behaviour.measure(bench.subject, pairs.batches(cfg.data.eval_batch_size, order=pairs.by_length()))


def inability(cfg: DictConfig, behaviour: Behaviour) -> str | None:
    """Why the model is not to be searched for this task, or None."""
    return behaviour.verdict(cfg.task.get("min_accuracy", 0))
