"""What became of every node: the edges' labels rolled up to modes of reuse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.compare.difference import CircuitDifference, Resampled, log_ratio
from circuitlit.evaluate.similarity import corrected_jaccard, corrected_jaccards
from circuitlit.graph import Graph

MODES = ("absent", "new", "lost", "full", "enhanced", "modified", "uncertain")


def node_modes(
    base: Resampled,
    tuned: Resampled,
    difference: CircuitDifference,
    moved: dict[str, float] | None = None,
    fits_back: Mapping[str, bool | None] | None = None,
    replaces: Mapping[str, bool | None] | None = None,
) -> dict[str, str]:
    """What became of every writer of the graph, in `MODES`.

    A node is there where 0.9 of the resamples' circuits hold an edge into or out of it. New and lost are as for edges.
    Of a node in both circuits: modified, where its function changed, the edges around it overlap less than resampling
    explains, or the sum of the effects out of it changes sign; enhanced, where the interval of its strength (its share
    of the circuit's weight) lies above that of the base; full reuse, where neither holds, the base's node does in the
    tuned model, and its weights moved less than the median of its layer; else modified. Uncertain is also a node that
    would be reused or enhanced, but for a swap that does not decide.

    Args:
        base, tuned, difference: as given to and by `circuit_difference`.
        moved: relative weight change of each node; None leaves it out.
        fits_back: whether the tuned node does in the base model, of those that were swapped (`Swap.fits_back`).
        replaces: whether the base's node does in the tuned model (`Swap.replaces`).
    """
    graph = difference.graph
    shaped = _shaped(graph)
    present = [_present(model, shaped) for model in (base, tuned)]
    kept = [base.kept, tuned.kept]
    modes = {}
    for writer, name in enumerate(graph.writers):
        before, after = float(present[0][writer]), float(present[1][writer])
        if before <= 0.1 or after <= 0.1:
            there = max(before, after) >= 0.9
            modes[name] = "absent" if max(before, after) <= 0.1 else ("new" if after > before else "lost")
            modes[name] = modes[name] if there or modes[name] == "absent" else "uncertain"
        elif before < 0.9 or after < 0.9:
            modes[name] = "uncertain"
        else:
            around = (graph.writer_of == writer) | shaped[writer, graph.reader_of]
            mode = _reuse(base, tuned, difference, writer, around, kept, moved)
            back, there = (fits_back or {}).get(name, True), (replaces or {}).get(name, True)
            needed = [back, there] if mode == "full" else [back]
            decided = "modified" if False in needed else "uncertain" if None in needed else mode
            modes[name] = mode if mode == "modified" else decided
    return modes


def _reuse(
    base: Resampled,
    tuned: Resampled,
    difference: CircuitDifference,
    writer: int,
    around: Bool[Tensor, "edge"],
    kept: list[Bool[Tensor, "edge"]],
    moved: dict[str, float] | None,
) -> str:
    """Mode of a node that is in both circuits."""
    graph = difference.graph
    out = graph.writer_of == writer
    signed = [m.scores.signed.sum(0)[out].sum().sign() for m in (base, tuned)]
    flips = float(signed[0] * signed[1]) < 0
    own = [edges[around] for edges in kept]
    if flips or corrected_jaccard(own[0], own[1]) < _own_floor(base, tuned, around):
        return "modified"
    strength = [m.shares[:, out].sum(1) for m in (base, tuned)]
    low = torch.nanquantile(log_ratio(strength[0], strength[1]), 0.025)
    if float(low) > 0:
        return "enhanced"
    if moved is None:
        return "full"
    name = graph.writers[writer]
    layer = [value for other, value in moved.items() if _layer(other) == _layer(name)]
    return "full" if moved.get(name, 0.0) <= sorted(layer or [0.0])[len(layer) // 2] else "modified"


def _own_floor(base: Resampled, tuned: Resampled, around: Bool[Tensor, "edge"]) -> float:
    """5th percentile of the overlap of a node's edges within a model."""
    within = [overlap for model in (base, tuned) for overlap in corrected_jaccards(model.circuits[:, around])]
    return float(torch.quantile(torch.tensor(within), 0.05))


def _layer(node: str) -> str:
    return node.split(".")[0].lstrip("am")


def _shaped(graph: Graph) -> Bool[Tensor, "writer reader"]:
    """Which readers shape what each writer writes."""
    shaped = torch.zeros(graph.n_writers, graph.n_readers, dtype=torch.bool)
    for reader, fed in enumerate(graph.writers_of_reader):
        shaped[fed.start : fed.stop, reader] = True
    return shaped


def _present(model: Resampled, shaped: Bool[Tensor, "writer reader"]) -> Float[Tensor, "writer"]:
    """Share of resamples whose circuit holds an edge out of, or into, each writer."""
    graph, edges = model.scores.graph, model.circuits.float()
    out, into = (edges.new_zeros(len(edges), count) for count in (graph.n_writers, graph.n_readers))
    out.index_add_(1, graph.writer_of, edges)
    into.index_add_(1, graph.reader_of, edges)
    return ((out + into @ shaped.T.float()) > 0).float().mean(0)
