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
    """Times whole steps, and steps by phase with `rival` run between them, off the clock.

    On a GPU whole steps come first, by its own clock from each step's start to the next one's: nothing waits in
    between, so that the CPU runs ahead as it does in training. Then come as many by phase, each of which waits. On a
    CPU every step is both. With a captured CUDA graph the gradient is computed in the forward phase.

    Args:
        warmup: steps not counted.
        repeats: whole steps on a GPU; all further ones are timed by phase.
        rival: what the step is compared with, run under the same conditions; None times no phases.
    """

    def __init__(self, warmup: int, repeats: int, rival: Callable[[], None] | None) -> None:
        self.warmup, self.rival = warmup, rival
        self.steps: list[float] = []
        self.rivals: list[float] = []
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
        """Run the rival, then start the clock; data and callbacks count for the step before."""
        if batch_idx % trainer.accumulate_grad_batches:
            self._lap(PHASES[-1])
            return
        step = trainer.global_step
        if self._on_gpu and step == self._by_phase_from:
            self.peak = _peak_bytes(pl_module.device)
        if self._on_gpu and self.warmup <= step <= self._by_phase_from:
            self._starts.append(torch.cuda.Event(enable_timing=True))
            self._starts[-1].record()
        if not self._by_phase(step):
            return
        now = _now()
        if self._left:
            self._finish(now)
        begun = _now()
        assert self.rival is not None
        self.rival()
        self._begun = self._mark = _now()
        if step >= self.warmup:
            self.rivals.append(self._begun - begun)
        self._spent = {}

    def _by_phase(self, step: int) -> bool:
        return self.rival is not None and step >= self._by_phase_from

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
            self._left = _now()

    def on_train_end(self, *args: Any) -> None:
        """Take the stopwatches off the last step: it has no next batch."""
        self._left = 0.0
        if self._starts:
            torch.cuda.synchronize()
            pairs = zip(self._starts, self._starts[1:], strict=False)
            self.steps = [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def _finish(self, now: float) -> None:
        if self._number < self.warmup:
            return
        if not self._on_gpu:
            self.steps.append(now - self._begun)
        self._spent[PHASES[-1]] = self._spent.get(PHASES[-1], 0.0) + now - self._left
        for name, seconds in self._spent.items():
            self.phases[name].append(seconds)

    def _lap(self, name: str) -> None:
        if not self._mark:
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
            averages, self._profiler = self._profiler.key_averages(), None
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
    micro_batches = cfg.trainer.accumulate_grad_batches
    given.model.dtype, given.examples = dtype, cfg.examples or steps * micro_batches * cfg.data.batch_size
    subject = random_subject(cfg, dtype)
    bench = random_workbench(cfg, subject, given.examples)
    _reset_peak(subject.device)
    batches = bench.data.train.batches(cfg.data.batch_size, cfg.tokens)
    tokens = next(iter(batches)).to(subject.device)

    def rival() -> None:
        for _ in range(micro_batches):
            stock_step(subject, tokens)

    timer = StepTimer(cfg.warmup, cfg.repeats, None if cfg.profile and torch.cuda.is_available() else rival)
    watchers: list[Callback] = [timer]
    if cfg.profile:
        watchers.append(Profile(cfg.warmup, run_dir() / f"profile-{dtype}.txt"))
    learn(cfg, bench, random_scores(bench, cfg.seed), run_dir(), watchers)
    peaks = ranks.gathered((timer.peak or _peak_bytes(subject.device)) / 2**30)
    planned = sum(plan(given, meta_subject(given)).values()) / 2**30
    middle, stock = median(timer.steps), median(timer.rivals) if timer.rivals else None
    quarters = quantiles(timer.steps, n=4) if len(timer.steps) > 1 else [middle] * 3
    n_bytes = traffic(subject.graph, cfg.mask.panel, tokens.clean.numel(), subject.model.config.hidden_size)
    n_bytes *= micro_batches * subject.model.dtype.itemsize
    floor = n_bytes / bandwidth(subject.device)
    result = {
        "dtype": dtype,
        "edges": subject.graph.n_edges,
        "batch": cfg.data.batch_size,
        "micro_batches": micro_batches,
        "tokens": cfg.tokens,
        "step": middle,
        "low": quarters[0],
        "high": quarters[2],
        "stock": stock,
        "to_stock": middle / stock if stock else None,
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
