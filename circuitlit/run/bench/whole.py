"""Where the seconds of a whole run go."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from omegaconf import DictConfig

from circuitlit.cli import build, mask_training
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import find
from circuitlit.evaluate.cost.benchmark import RunTime, RunTimes, machine_of
from circuitlit.graph import Circuit
from circuitlit.masked import References
from circuitlit.run import train
from circuitlit.tasks import PairsModule

WATCHED: tuple[tuple[Any, str, str], ...] = (
    (train, "build_subject", "model"),
    (build, "instantiate", "pairs"),
    (PairsModule, "__init__", "tokenising"),
    (References, "fill", "teacher and ablated runs"),
    (Workbench, "score", "scores"),
    (mask_training, "learn", "training"),
    (Circuit, "cut", "selection"),
    (find, "best_attribution", "choice of the attribution baseline"),
    (find, "measure_circuit", "held-out evaluation with controls"),
    (train, "finish_circuit", "files and page"),
)


class Stopwatch:
    """Seconds spent in watched functions, without those spent in watched ones that they call.

    Attributes:
        seconds: by phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def watch(self, owner: Any, name: str, phase: str) -> Iterator[None]:
        """Time the calls of `owner.name` while the block runs."""
        held = vars(owner)[name]
        is_method = isinstance(held, classmethod)
        setattr(owner, name, classmethod(self._timed(held.__func__, phase)) if is_method else self._timed(held, phase))
        try:
            yield
        finally:
            setattr(owner, name, held)

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begun
                self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - self._inner.pop()
                self._inner[-1] += spent

        return timed


def whole_run(cfg: DictConfig) -> RunTimes:
    """One run of `train` with the configured task and model, by phase."""
    watch = Stopwatch()
    begun = time.perf_counter()
    with ExitStack() as stack:
        for place in WATCHED:
            stack.enter_context(watch.watch(*place))
        result = train.run(cfg)
    total = time.perf_counter() - begun
    phases = {phase: watch.seconds.get(phase, 0.0) for _, _, phase in WATCHED}
    phases["everything else"] = total - sum(phases.values())
    steps, status = (result.steps, result.status) if result else (0, None)
    row = RunTime(seconds=total, phases=phases, steps=steps, status=status)
    what = f"{cfg.task.name} on {cfg.model.name}"
    return RunTimes(bench="run", what=what, machine=machine_of(build.device_of(cfg)), measured=[row])
