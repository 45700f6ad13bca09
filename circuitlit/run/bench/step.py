"""One training step inside `Trainer.fit`, as a whole and by phase, beside what bounds it."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from lightning import Callback
from omegaconf import DictConfig

from circuitlit.cli import ranks
from circuitlit.cli.checks import run_dir
from circuitlit.cli.learn import learn
from circuitlit.graph import Graph
from circuitlit.model import Subject
from circuitlit.run.bench.data import random_scores, random_subject, random_workbench
from circuitlit.run.bench.plan import meta_subject, plan
from circuitlit.run.bench.timer import PHASES, Profile, StepTimer, now, peak_bytes
from circuitlit.tasks.pair import Batch


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
    peaks = ranks.gathered((timer.peak or peak_bytes(subject.device)) / 2**30)
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
        begun = now()
        target.copy_(source)
        seconds.append(now() - begun)
    return 2 * source.nbytes / min(seconds)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
