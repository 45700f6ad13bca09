"""One training step inside `Trainer.fit`, as a whole and by phase, beside what bounds it."""

from __future__ import annotations

import gc
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from circuitlit.graph import Graph
from circuitlit.model import Subject
from circuitlit.run import ranks
from circuitlit.run.bench_data import random_scores, random_subject, random_workbench
from circuitlit.run.bench_plan import meta_subject, plan
from circuitlit.run.checks import run_dir
from circuitlit.run.train import learn
from circuitlit.tasks.pair import Batch

PHASES = ("references", "masks", "forward", "backward", "optimizer", "data and callbacks")


class StepTimer(Callback):
    """Times every step and, on every second one, its phases; runs `rival` between steps, off the clock.

    Timing a phase waits for the GPU, so on one the steps with phases do not count as steps. With a captured CUDA graph
    the gradient is computed in the forward phase.

    Args:
        warmup: steps not counted.
        rival: what the step is compared with, run under the same conditions.
    """

    def __init__(self, warmup: int, rival: Callable[[], None]) -> None:
        self.warmup, self.rival = warmup, rival
        self.plain = False  # True times no phases
        self.steps: list[float] = []
        self.rivals: list[float] = []
        self.phases: dict[str, list[float]] = defaultdict(list)
        self._spent: dict[str, float] = {}
        self._begun = self._mark = self._left = 0.0
        self._number = 0
        self._detailed = True

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put stopwatches around the learner's parts."""
        pl_module.references = self._timed("references", pl_module.references)
        pl_module.loss = self._timed("forward", pl_module.loss)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run the rival, then start the clock; data and callbacks count for the step before."""
        now = _now()
        if self._left:
            self._finish(now)
        begun = _now()
        self.rival()
        self._begun = self._mark = _now()
        if trainer.global_step >= self.warmup:
            self.rivals.append(self._begun - begun)
        self._spent, self._detailed = (
            {},
            not self.plain and (not torch.cuda.is_available() or trainer.global_step % 2 == 1),
        )

    def on_before_backward(self, *args: Any) -> None:
        """Everything since the start but references and forward was sampling of masks."""
        self._lap("masks")

    def on_after_backward(self, *args: Any) -> None:
        """The mask gradient is there."""
        self._lap("backward")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """The update is done; other callbacks, loggers and the next batch follow."""
        self._lap("optimizer")
        self._left = _now() if self._detailed else time.perf_counter()
        self._number = trainer.global_step - 1

    def on_train_end(self, *args: Any) -> None:
        """Take the stopwatches off the last step: it has no next batch."""
        self._left = 0.0

    def _finish(self, now: float) -> None:
        if self._number < self.warmup:
            return
        if not (self._detailed and torch.cuda.is_available()):
            self.steps.append(now - self._begun)
        if self._detailed:
            for name, seconds in (self._spent | {"data and callbacks": now - self._left}).items():
                self.phases[name].append(seconds)

    def _lap(self, name: str) -> None:
        if not self._detailed:
            return
        now = _now()
        self._spent[name] = self._spent.get(name, 0.0) + now - self._mark
        self._mark = now

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
            _now()
            self._profiler.stop()
            averages = self._profiler.key_averages()
            orders = ("self_cuda_time_total", "self_cpu_time_total") if on_gpu else ("self_cpu_time_total",)
            tables = [averages.table(sort_by=order, row_limit=25, max_name_column_width=90) for order in orders]
            self.path.write_text("\n".join(tables))
            print(*tables, sep="\n")


def time_step(cfg: DictConfig, dtype: str) -> dict[str, Any]:
    """Seconds and memory of one step, with random weights and a new random batch each time.

    Returns:
        Medians, with the quartiles of the whole step: `step`, `low`, `high`, `stock` (forward and backward of the stock
        model on the same tokens) in seconds, `phases`, `peak_gib` (the largest of `peaks_gib`, one a device) beside
        `planned_gib`, and the ratios `to_stock` and `to_traffic`.
    """
    steps = cfg.warmup + cfg.repeats * (2 if torch.cuda.is_available() else 1) + 1  # the last one has no next batch
    cfg.mask.schedule.steps = steps
    gc.collect()
    given = cfg.copy()
    given.model.dtype, given.examples = dtype, cfg.examples or steps * cfg.data.batch_size
    subject = random_subject(cfg, dtype)
    bench = random_workbench(cfg, subject, given.examples)
    _reset_peak(subject.device)
    batches = bench.data.train.batches(cfg.data.batch_size, cfg.tokens)
    tokens = next(iter(batches)).to(subject.device)
    timer = StepTimer(cfg.warmup, lambda: stock_step(subject, tokens))
    watchers: list[Callback] = [timer]
    if cfg.profile:
        timer.rival, timer.plain = (lambda: None), True
        watchers.append(Profile(cfg.warmup, run_dir() / f"profile-{dtype}.txt"))
    learn(cfg, bench, random_scores(bench, cfg.seed), run_dir(), watchers)
    peaks = ranks.gathered(_peak_bytes(subject.device) / 2**30)
    planned = sum(plan(given, meta_subject(given)).values()) / 2**30
    middle, rival = median(timer.steps), median(timer.rivals)
    quarters = quantiles(timer.steps, n=4) if len(timer.steps) > 1 else [middle] * 3
    n_bytes = traffic(subject.graph, cfg.mask.panel, tokens.clean.numel(), subject.model.config.hidden_size)
    n_bytes *= subject.model.dtype.itemsize
    floor = n_bytes / bandwidth(subject.device)
    result = {
        "dtype": dtype,
        "edges": subject.graph.n_edges,
        "batch": cfg.data.batch_size,
        "tokens": cfg.tokens,
        "step": middle,
        "low": quarters[0],
        "high": quarters[2],
        "stock": rival,
        "to_stock": middle / rival,
        "traffic_bytes": n_bytes,
        "to_traffic": middle / floor,
        "devices": len(peaks),
        "peak_gib": max(peaks),
        "peaks_gib": peaks,
        "planned_gib": planned,
        "cached": bench.references.cached,
        "phases": {name: median(timer.phases[name]) for name in PHASES if timer.phases[name]},
    }
    del bench, timer, subject, watchers
    gc.collect()
    return result


def stock_step(subject: Subject, batch: Batch) -> None:
    """Forward and backward of the stock model on a batch's clean tokens, weights frozen: what a mask step adds to.

    Logits of all positions, gradient down to the embeddings.
    """
    with torch.enable_grad():
        embedded = subject.embed(batch.clean).detach().requires_grad_()
        logits = subject.model(inputs_embeds=embedded, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch.clean[:, 1:].flatten())
        torch.autograd.grad(loss, embedded)


def traffic(graph: Graph, panel: int, tokens: int, width: int) -> int:
    """Numbers that the mixing products of one step move, forward and backward, at least.

    Each product reads `w` writers and writes `R` readers, `(w + R) * tokens * width` numbers; backward has two such,
    for the masks and for the writers.
    """
    rows = graph.n_writers + 1  # the logits' read
    for start in range(0, graph.n_layers, panel):
        stop, first = min(start + panel, graph.n_layers), graph.writers_before(start)
        rows += first + (stop - start) * graph.readers_per_layer
        for layer in range(start, stop):
            own = graph.writers_before(layer) - first
            attention = graph.readers_per_layer - 1
            if graph.parallel:
                rows += own + attention + 1 if own else 0
            else:
                rows += (own + attention if own else 0) + own + graph.n_heads + 1
    return 3 * rows * tokens * width


def bandwidth(device: torch.device, size: int = 2**26) -> float:
    """Bytes a second that a large copy reads and writes on a device, best of five."""
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        begun = _now()
        target.copy_(source)
        seconds.append(_now() - begun)
    return 2 * source.nbytes / min(seconds)


def _now() -> float:
    """Seconds on a clock that has waited for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: torch.device) -> int:
    """Most memory since `_reset_peak`: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
