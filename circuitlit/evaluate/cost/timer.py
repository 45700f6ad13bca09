"""Stopwatches for training steps: whole steps, their phases, and a profile."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

PHASES = ("references", "masks", "forward", "backward", "optimizer", "data and callbacks")


class StepTimer(Callback):
    """Times whole steps, and steps by phase with `other` run between them, off the clock.

    On a GPU whole steps come first, by its own clock from each step's start to the next one's: nothing waits in
    between, so that the CPU runs ahead as it does in training. Then come as many by phase, each of which waits. On a
    CPU every step is both. With a captured CUDA graph the gradient is computed in the forward phase.

    Args:
        warmup: steps not counted.
        repeats: whole steps on a GPU; all further ones are timed by phase.
        other: what the step is compared with, run under the same conditions; None times no phases.
    """

    def __init__(self, warmup: int, repeats: int, other: Callable[[], None] | None) -> None:
        self.warmup, self.other = warmup, other
        self.steps: list[float] = []
        self.others: list[float] = []
        self.phases: dict[str, list[float]] = defaultdict(list)
        self._on_gpu = torch.cuda.is_available()
        self._by_phase_from = warmup + repeats if self._on_gpu else 0
        self._starts: list[torch.cuda.Event] = []
        self.peak = 0  # bytes, of the whole steps alone
        self._spent: dict[str, float] = {}
        self._begun = self._mark = self._left = 0.0
        self._number = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put stopwatches around the learner's parts."""
        pl_module.references = self._timed("references", pl_module.references)
        pl_module.loss = self._timed("forward", pl_module.loss)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run what is compared, then start the clock; data and callbacks count for the step before."""
        if batch_idx % trainer.accumulate_grad_batches:
            self._lap(PHASES[-1])
            return
        step = trainer.global_step
        if self._on_gpu and step == self._by_phase_from:
            self.peak = peak_bytes(pl_module.device)
        if self._on_gpu and self.warmup <= step <= self._by_phase_from:
            self._starts.append(torch.cuda.Event(enable_timing=True))
            self._starts[-1].record()
        if not self._by_phase(step):
            return
        moment = now()
        if self._left:
            self._finish(moment)
        begun = now()
        assert self.other is not None
        self.other()
        self._begun = self._mark = now()
        if step >= self.warmup:
            self.others.append(self._begun - begun)
        self._spent = {}

    def _by_phase(self, step: int) -> bool:
        return self.other is not None and step >= self._by_phase_from

    def on_before_backward(self, *args: Any) -> None:
        """Everything since the start but references and forward was sampling of masks."""
        self._lap("masks")

    def on_after_backward(self, *args: Any) -> None:
        """The mask gradient is there."""
        self._lap("backward")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """The update is done; other callbacks, loggers and the next batch follow."""
        self._number = max(0, trainer.global_step - 1)
        if self._by_phase(self._number):
            self._lap("optimizer")
            self._left = now()

    def on_train_end(self, *args: Any) -> None:
        """Take the stopwatches off the last step: it has no next batch."""
        self._left = 0.0
        if self._starts:
            torch.cuda.synchronize()
            pairs = zip(self._starts, self._starts[1:], strict=False)
            self.steps = [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def _finish(self, moment: float) -> None:
        if self._number < self.warmup:
            return
        if not self._on_gpu:
            self.steps.append(moment - self._begun)
        self._spent[PHASES[-1]] = self._spent.get(PHASES[-1], 0.0) + moment - self._left
        for name, seconds in self._spent.items():
            self.phases[name].append(seconds)

    def _lap(self, name: str) -> None:
        if not self._mark:
            return
        moment = now()
        self._spent[name] = self._spent.get(name, 0.0) + moment - self._mark
        self._mark = moment

    def _timed(self, name: str, part: Any) -> Any:
        timer = self

        class Timed:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(part, attribute)

            def __call__(self, *args: Any) -> Any:
                timer._lap("masks")
                result = part(*args)
                timer._lap(name)
                return result

        return Timed()


class Profile(Callback):
    """Profiles four steps after the warm-up and prints the kernels (operators on a CPU) that take longest.

    Args:
        warmup: steps before.
        path: the table's file.
    """

    def __init__(self, warmup: int, path: Path) -> None:
        self.first, self.last, self.path = warmup, warmup + 4, path
        self._profiler: torch.profiler.profile | None = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin and end."""
        step = trainer.global_step
        on_gpu = torch.cuda.is_available()
        if step == self.first and self._profiler is None:
            kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu]
            self._profiler = torch.profiler.profile(activities=kinds)
            self._profiler.start()
        elif step == self.last and self._profiler is not None:
            now()
            self._profiler.stop()
            averages, self._profiler = self._profiler.key_averages(), None
            orders = ("self_cuda_time_total", "self_cpu_time_total") if on_gpu else ("self_cpu_time_total",)
            tables = [averages.table(sort_by=order, row_limit=25, max_name_column_width=90) for order in orders]
            self.path.write_text("\n".join(tables))
            print(*tables, sep="\n")


def now() -> float:
    """Seconds on a clock that has waited for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: torch.device) -> int:
    """Most memory since the peak was reset: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
