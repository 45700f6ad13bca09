"""One training step inside `Trainer.fit`, as a whole and by phase, beside what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from lightning import Callback

from circuitlit.arguments import checks_arguments
from circuitlit.discover import MaskLearner, initial_log_alpha
from circuitlit.discover.fit import fit
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.cost.benchmark import StepTime, StepTimes, dtype_of, machine_of, said
from circuitlit.evaluate.cost.timer import PHASES, Profile, StepTimer, now, peak_bytes
from circuitlit.evaluate.find import GATES, SCHEDULE
from circuitlit.graph import Graph
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence
from circuitlit.tasks.pair import Batch


def steps_to_take(warmup: int, repeats: int) -> int:
    """Training steps for so many timed ones: on a GPU whole steps and steps by phase, and one more without a next."""
    return warmup + repeats * (2 if torch.cuda.is_available() else 1) + 1


@checks_arguments
def time_training(
    bench: Workbench,
    *,
    repeats: int = 5,
    warmup: int = 2,
    train: Callable[[list[Callback]], object] | None = None,
    micro_batches: int = 1,
    planned_gib: float | None = None,
    profile: Path | None = None,
) -> StepTimes:
    """Seconds and memory of one step of mask training, beside a stock forward and backward on the same tokens.

    Args:
        bench: subject, pairs and masked model.
        repeats: steps that are timed.
        warmup: steps ahead of these.
        train: trains `steps_to_take(warmup, repeats)` steps with the callbacks that it is given; None trains masks that
            start equal.
        micro_batches: in one of its steps.
        planned_gib: memory that is expected, for the table.
        profile: file for a table of what takes longest in four steps; None makes none. On a GPU steps are then timed
            without their phases.

    Raises:
        UserError: nothing would be timed.
    """
    if repeats < 1 or warmup < 0 or micro_batches < 1:
        given = f"repeats={repeats}, warmup={warmup} and micro_batches={micro_batches}"
        raise UserError(f"{given}: at least 1, 0 and 1 are needed")
    subject, train_split = bench.subject, bench.data.train
    steps = steps_to_take(warmup, repeats)
    held = _reset_peak(subject)
    batch = next(train_split.batches(bench.data.batch_size)).to(subject.device)

    def beside() -> None:
        for _ in range(micro_batches):
            stock_step(subject, batch)

    timer = StepTimer(warmup, repeats, None if profile and torch.cuda.is_available() else beside)
    watchers: list[Callback] = [timer, *([Profile(warmup, profile)] if profile else [])]
    if train is None:
        _train(bench, steps, watchers)
    else:
        train(watchers)
    peaks = _gathered(((timer.peak or peak_bytes(subject.device)) - held) / 2**30)
    middle, stock = median(timer.steps), median(timer.others) if timer.others else None
    quarters = quantiles(timer.steps, n=4) if len(timer.steps) > 1 else [middle] * 3
    n_bytes = traffic(subject.graph, bench.model.panel, batch.clean.numel(), subject.model.config.hidden_size)
    n_bytes *= micro_batches * subject.model.dtype.itemsize
    found = StepTime(
        dtype=dtype_of(subject),
        layers=subject.graph.n_layers,
        edges=subject.graph.n_edges,
        batch=len(batch),
        micro_batches=micro_batches,
        tokens=batch.clean.shape[1],
        examples=len(train_split),
        step=middle,
        low=quarters[0],
        high=quarters[2],
        stock=stock,
        to_stock=middle / stock if stock else None,
        traffic_bytes=n_bytes,
        to_traffic=middle / (n_bytes / bandwidth(subject.device)),
        devices=len(peaks),
        peak_gib=max(peaks),
        peaks_gib=peaks,
        planned_gib=planned_gib,
        cached=bench.references.cached,
        phases={name: median(timer.phases[name]) for name in PHASES if timer.phases[name]},
        panel=bench.model.panel,
        recompute=bench.model.recompute,
    )
    what = said(subject, found.batch, found.tokens, micro_batches)
    return StepTimes(bench="step", what=what, machine=machine_of(subject.device), measured=[found])


def _train(bench: Workbench, steps: int, watchers: Sequence[Callback]) -> None:
    """Train masks that start equal, on the command line's schedule."""
    initial = initial_log_alpha(bench.layout, "equal", None, bench.count, 3.0)
    target, schedule = 1 - bench.count / bench.layout.n_edges, replace(SCHEDULE, steps=steps)
    loss = bench.loss(kl_divergence)
    learner = MaskLearner(loss, bench.references, initial, target, schedule, GATES, constraint_gradient=True)
    fit(learner.to(bench.subject.device), bench.data, steps=steps, watchers=watchers)


def _gathered(value: float) -> list[Any]:
    """Every process's value, by rank; each must call this."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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
            attention, tail = graph.attention_readers, graph.mlp_readers
            if graph.parallel:
                rows += own + attention + tail if own else 0
            else:
                rows += (own + attention if own else 0) + own + graph.n_heads + tail
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


def _reset_peak(subject: Subject) -> int:
    """Look for the most memory anew; bytes that a process on a CPU holds beside its weights, none on a GPU."""
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
        return 0
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of all that went before, too
        Path("/proc/self/clear_refs").write_text("5")
    return max(0, peak_bytes(subject.device) - sum(p.nbytes for p in subject.model.parameters()))
