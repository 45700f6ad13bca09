"""ACDC: edges removed for good, one after another from the logits down, as long as the loss hardly rises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.discover.held_loss import HeldLoss
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.masked import References
from circuitlit.progress import told
from circuitlit.tasks.pair import Batch


@declares(Traits(own_size=True))
def acdc(
    loss: MaskedLoss,
    references: References,
    batches: Iterable[Batch],
    *,
    threshold: float | None = None,
    count: int | None = None,
    chunk: int = 8,
    searches: int = 5,
    bracket: Sequence[float] = (1e-6, 1.0),
    seconds: float | None = None,
) -> EdgeScores:
    """Visit all edges from the logits down; remove an edge for good if the loss then rises by less than `threshold`.

    Readers come in reverse topological order: the logits, then block by block from the last, each block's MLP ahead of
    its v, k and q readers, heads from the last. A reader's edges come in reverse topological order of their writers.
    Nothing depends on chance or hashing. A reader that shapes only nodes without any edge left is not tried: all its
    edges go.

    Args:
        loss: the objective under masks.
        references: teacher and ablated writers.
        batches: the pairs; the loss is their mean.
        threshold: rise of the loss, in its unit, from which on an edge is kept; give it or `count`.
        count: edges wanted; the sweep is returned that keeps the number closest to it.
        chunk: most edges tried at once. It changes the speed, not the result.
        searches: most sweeps made for `count`, each at a threshold of its own.
        bracket: thresholds that the search for `count` begins between, in the loss's unit.
        seconds: longest time that one pass over the edges may take; None lets it finish.

    Returns:
        For each edge the rise of the loss when it was tried, on top of all earlier removals: the kept ones are those of
        at least the threshold, so they rank above all removed ones. Edges not tried score 0, for they cannot be heard.
        `details["kept"]` is ACDC's own number of edges.

    Raises:
        UserError: neither or both of `threshold` and `count` are given, one is out of its range, or the time is up: a
            circuit of which a part was never looked at is no result.

    Source: Conmy et al., arXiv 2304.14997, Algorithm 1, with KL summed over the vocabulary.
    """
    if chunk < 1:
        raise UserError(f"method.score.chunk={chunk} is not at least 1")
    if (threshold is None) == (count is None):
        raise UserError("ACDC needs either a threshold or a count: set method.score.threshold or method.score.count")
    if threshold is not None and not 0 < threshold < math.inf:
        raise UserError(f"method.score.threshold={threshold} is not a positive number")
    edges = loss.layout.graph.n_edges
    if count is not None and not 0 < count < edges:
        raise UserError(f"method.score.count={count} is not between 0 and the graph's {edges} edges")
    if len(bracket) != 2 or not 0 < bracket[0] < bracket[1] < math.inf or searches < 1:
        raise UserError(
            f"method.score.bracket={list(bracket)} must be two rising positive thresholds, and method.score.searches="
            f"{searches} at least 1"
        )
    pairs = list(batches)

    def sweep(threshold: float) -> Sweep:
        return _sweep(HeldLoss(loss, references, pairs), threshold, chunk, seconds)

    if threshold is not None:
        return _scores(loss, sweep(threshold))
    assert count is not None
    return _scores(loss, _search(sweep, count, searches, (bracket[0], bracket[1]), edges))


@dataclass(frozen=True)
class Sweep:
    """One pass over all edges.

    Attributes:
        threshold: rise from which on an edge was kept.
        rises: of the loss, when each edge was tried; 0 where it was not.
        kept: the circuit.
        final: loss of the circuit.
        tried: variants that were run; more than the edges tried by those that were tried in vain.
    """

    threshold: float
    rises: Float[Tensor, "edge"]
    kept: Bool[Tensor, "edge"]
    final: float
    tried: int


def _sweep(held: HeldLoss, threshold: float, chunk: int, seconds: float | None) -> Sweep:
    graph, started = held.graph, time.perf_counter()
    rises = torch.zeros(graph.n_edges, dtype=torch.float64)
    current, tried = held.value(), 0
    for reader in told(range(graph.n_readers)[::-1], "readers looked at", graph.n_readers):
        passed = time.perf_counter() - started
        if seconds is not None and passed > seconds:
            left = int(graph.offsets[reader] + graph.visible[reader])
            share = 1 - left / graph.n_edges
            raise UserError(
                f"ACDC looked at {share:.1%} of the {graph.n_edges:,} edges in {passed:.0f} s; raise "
                "method.score.seconds, or lower method.max_batches"
            )
        fed = list(graph.writers_of_reader[reader])
        row = held.masks[reader].clone()
        if fed and not bool(held.masks[:, fed].any()):
            row[:] = 0
        else:
            first, visible = int(graph.offsets[reader]), int(graph.visible[reader])
            current, more = _prune(held, reader, row, rises[first : first + visible], current, threshold, chunk)
            tried += more
        held.commit(reader, row)
    kept = held.masks.flatten()[graph.dense_index].bool()
    return Sweep(threshold, rises, kept, current, tried)


def _prune(
    held: HeldLoss,
    reader: int,
    row: Float[Tensor, "writer"],
    rises: Float[Tensor, "visible"],
    current: float,
    threshold: float,
    chunk: int,
) -> tuple[float, int]:
    """Try all edges into one reader; `row` and `rises` are filled in place.

    Several edges are tried at once on the guess that all but the last of them go: variant i lacks edges 1 to i. The
    verdicts hold up to and including the first edge that is kept; what was tried after it is tried again with it. The
    next guess then has a size halfway between this one's and the number of edges that went.

    Returns:
        The loss after all removals, and how many variants were run.
    """
    pending, size, tried = list(reversed(range(len(rises)))), chunk, 0
    while pending:
        guess = pending[:size]
        rows = row.repeat(len(guess), 1)
        for number, writer in enumerate(guess):
            rows[number:, writer] = 0
        values = held.values(reader, rows)
        tried += len(guess)
        done = 0
        for writer, value in zip(guess, values, strict=True):
            done += 1
            rises[writer] = value - current
            if not value - current < threshold:
                size = (size + done + 1) // 2
                break
            row[writer], current = 0, value
        else:
            size = min(chunk, 2 * size)
        pending = pending[done:]
    return current, tried


def _search(
    sweep_at: Callable[[float], Sweep], count: int, searches: int, bracket: tuple[float, float], total: int
) -> Sweep:
    """The sweep that keeps closest to `count` edges.

    The number kept falls roughly as a power of the threshold, so the next threshold is read off a line between the
    bracket's ends on logarithmic scales. It stays clear of both, so that the bracket shrinks with every sweep.
    """
    best: Sweep | None = None
    low, high = ((math.log(end), math.log(kept)) for end, kept in zip(bracket, (total, 1), strict=True))
    wanted = math.log(count)
    for _ in range(searches):
        share = (low[1] - wanted) / (low[1] - high[1]) if low[1] > high[1] else 0.5
        at = low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
        sweep = sweep_at(math.exp(at))
        kept = int(sweep.kept.sum())
        if best is None or abs(kept - count) < abs(int(best.kept.sum()) - count):
            best = sweep
        if kept == count:
            break
        end = (at, math.log(max(kept, 1)))
        low, high = (end, high) if kept > count else (low, end)
    assert best is not None
    return best


def _scores(loss: MaskedLoss, sweep: Sweep) -> EdgeScores:
    """The rises in float32, rounded so that no removed edge reaches the kept ones."""
    line = torch.tensor(sweep.threshold, dtype=torch.float32)
    below = torch.nextafter(line, torch.tensor(-math.inf))
    rises = sweep.rises.float()
    values = torch.where(sweep.kept, rises.clamp(min=line), rises.clamp(max=below))
    details: dict[str, object] = {
        "threshold": sweep.threshold,
        "kept": int(sweep.kept.sum()),
        "objective": sweep.final,
        "variants": sweep.tried,
    }
    return EdgeScores(loss.layout.graph, values[None], "acdc", details=details, unit=loss.unit)
