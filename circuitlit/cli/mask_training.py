"""The training of masks between attribution and evaluation: loggers, adapters beside, several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

from lightning import Callback
from omegaconf import DictConfig

from circuitlit.cli import joint, ranks
from circuitlit.cli.checks import run_dir
from circuitlit.cli.evolution import snapshots_of
from circuitlit.cli.first_page import FirstPage
from circuitlit.cli.learn import learn
from circuitlit.cli.loggers import open_loggers
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.baseline import Baseline
from circuitlit.evaluate.find import Trained
from circuitlit.evaluate.measure import TestBed
from circuitlit.progress import phase
from circuitlit.timeline.snapshots import Snapshots


class MaskTraining:
    """Trains masks for `search_circuit`; its loggers are closed at the end of its `with` block.

    Args:
        cfg: the run's settings.
        facts: provenance, to which trained adapters are added.
        watcher: from the workbench and the number of attributions that are going to be compared to one more callback.

    Attributes:
        loggers: open ones.
        seen: snapshots of the masks.
    """

    def __init__(self, cfg: DictConfig, facts: dict[str, Any], watcher: Callable[[Workbench, int], Callback]) -> None:
        self.loggers: list[Any] = []
        self.seen: Snapshots | None = None
        self._cfg, self._facts, self._watcher, self._stack = cfg, facts, watcher, ExitStack()
        self._pages: list[FirstPage] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        for page in self._pages if error[0] is not None else ():
            page.path.unlink(missing_ok=True)  # it speaks of a training that does not go on

    def first_page(self, bench: Workbench, bed: TestBed, ranked: Sequence[Baseline]) -> None:
        """Write what attribution finds, and follow the training there."""
        if ranks.is_writer():
            title = f"{self._cfg.task.name}: {bench.subject.name}"
            self._pages = [FirstPage(run_dir(), title, self._cfg.sparsity.target, bed, ranked, bench.count)]

    def __call__(self, bench: Workbench, tried: Sequence[Baseline]) -> Trained | None:
        """Train from the first attribution on; None in a process that is done then."""
        cfg = self._cfg
        self.loggers = self._stack.enter_context(open_loggers(cfg))
        together = joint.adapt(cfg, bench) if cfg.adapter.get("train") else None
        bench, beside = (together.bench, together.trained) if together else (bench, ())
        with phase("training", f"Training masks for {cfg.mask.schedule.steps} steps"):
            watchers = [self._watcher(bench, 0 if together else len(tried)), *self._pages]
            learner, history = learn(cfg, bench, tried[0].scores, run_dir(), watchers, self.loggers, beside)
        if not ranks.one_goes_on(bench):
            return None  # every process has the same masks; one measures and writes
        if together:
            bench = together.finish()
            self._facts["model"] |= {"adapter": str(run_dir() / "adapter")}
        self.seen = snapshots_of(learner.trainer)
        steps, masks = learner.trainer.global_step, learner.trained_masks()
        return Trained(learner.scores(), masks, history.rows, steps, bench, compared=not together)
