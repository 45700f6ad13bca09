"""How masks evolved over a run: which edges are in, how fast that changes, and the stages it falls into.

Everything is about the `count` best edges of each snapshot, which is the number of edges in the final circuit, because
their number does not move with the sparsity schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from circuitlit.arguments import checks_arguments
from circuitlit.graph import Graph, reachable_edges
from circuitlit.result import Result
from circuitlit.timeline.chance import DRAWS
from circuitlit.timeline.mask_run import read_curves, read_snapshots
from circuitlit.timeline.snapshots import BINS, Snapshots
from circuitlit.timeline.stages import Timeline

KINDS = ("q", "k", "v", "mlp", "logits")  # of readers
Shares = list[float]  # one a snapshot


@dataclass(frozen=True, kw_only=True)
class AskedFor:
    """What the schedule asked for.

    Attributes:
        steps: of the whole run.
        knots: steps at which it changes by itself, see `Snapshots.knots`; None for those that it lacks.
        sparsity: [snapshot] share of edges that were to be cut.
        noise: [snapshot] scale of the gates' noise.
    """

    steps: int
    knots: dict[str, float | None]
    sparsity: Shares
    noise: Shares


@dataclass(frozen=True, kw_only=True)
class KeptByReader:
    """Edges of the circuit by the kind of their reader: [snapshot][layer], and [snapshot] into the logits."""

    q: list[list[int]]
    k: list[list[int]]
    v: list[list[int]]
    mlp: list[list[int]]
    logits: list[int]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Edges of the circuit between layers.

    Attributes:
        pairs: [pair][2] the writers' layer (0 is the input, l + 1 layer l) and the readers' (l is layer l, n_layers the
            logits); those that never have an edge between them are left out.
        counts: [snapshot][pair] edges.
    """

    pairs: list[list[int]]
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Gates by log-alpha: [snapshot][bin] counts between [bin + 1] edges; the outer bins hold what lies beyond."""

    edges: list[float]
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True, repr=False)
class MaskTimeline(Result):
    """What `follow_masks` found, one number a snapshot where nothing else is said.

    Attributes:
        steps: training steps, from the masks' start to the last snapshot.
        count, n_masks: edges in the circuit, and in all; an edge counts once a token role.
        roles: names of the token roles; empty for one mask at all positions.
        graph: topology of the model.
        schedule: what was asked for.
        overlap_final: chance-corrected Jaccard overlap with the last snapshot: 1 the same edges, 0 as by chance.
        progress: the same, rescaled to 0 at the first snapshot and 1 at the last.
        overlap_previous: overlap with the snapshot before; None at the first.
        churn: edges that went in or out since the snapshot before; None at the first.
        velocity: (1 - overlap_previous) per hundredth of the run's steps.
        undecided: share of gates with a log-alpha between -2 and 2.
        hard_kl: KL of the circuit as it would be cut, nats, on the probe's pairs; None where it was not measured.
        open: expected share of edges kept, at the noise of that step.
        reachable: edges of the circuit that lie on a path from the input to the logits.
        kept, flow: where in the model the circuit's edges are.
        log_alpha: where the gates' numbers are.
        stages: and the boundaries between them, with their chances.
    """

    schema: ClassVar[str] = "mask_timeline"
    version: ClassVar[int] = 3
    file: ClassVar[str] = "evolution.json"
    indent: ClassVar[int | None] = None

    steps: list[int]
    count: int
    n_masks: int
    roles: list[str]
    graph: Graph
    schedule: AskedFor
    overlap_final: Shares
    progress: Shares
    overlap_previous: list[float | None]
    churn: list[int | None]
    velocity: Shares
    undecided: Shares
    hard_kl: list[float | None]
    open: Shares
    reachable: list[int]
    kept: KeptByReader
    flow: Flow
    log_alpha: Histogram
    stages: Timeline

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "this") -> Self:
        """As `Result.from_dict`; files of format 2, which have the same keys, are read, too."""
        if content.get("format") == 2:
            content = content | {"schema": {"name": cls.schema, "version": cls.version}}
        return super().from_dict(content, source)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the file."""
        return super().to_dict() | {"stages": self.stages.to_dict()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a snapshot."""
        names = "steps overlap_final overlap_previous churn velocity undecided open reachable hard_kl".split()
        columns = [getattr(self, name) for name in names] + [self.schedule.sparsity, self.schedule.noise]
        for values in zip(*columns, strict=True):
            yield dict(zip(("step", *names[1:], "sparsity_asked", "noise"), values, strict=True))


@checks_arguments
def follow_masks(
    run: Path | str | Snapshots, curves: Iterable[Mapping[str, float]] | None = None, *, draws: int = DRAWS
) -> MaskTimeline:
    """How the masks of a run evolved, and the stages that are beyond chance.

    Args:
        run: directory of a run of `train`, finished or not; or what was seen of one.
        curves: rows of the training with `step` and, where it was measured, `hard_kl` in nats; None reads those of the
            directory.
        draws: walks with the run's own steps that the boundaries are compared with; 0 tests nothing, and every boundary
            counts.

    Raises:
        UserError: the directory has no masks, or damaged ones.
    """
    if isinstance(run, Snapshots):
        seen, curves = run, curves or ()
    else:
        seen = read_snapshots(Path(run))
        curves = read_curves(Path(run)) if curves is None else curves
    measured = {int(row["step"]): row["hard_kl"] for row in curves if row.get("hard_kl") is not None}
    steps, schedule, layout, final = seen.steps, seen.schedule, seen.layout, seen.overlap_final()
    moved, later = 1 - final[0], range(1, len(steps))
    return MaskTimeline(
        steps=list(steps),
        count=seen.count,
        n_masks=len(seen.kept[0]),
        roles=list(layout.roles),
        graph=layout.graph,
        schedule=AskedFor(
            steps=schedule.steps,
            knots=seen.knots(),
            sparsity=_rounded(1 - schedule.open_share(step, seen.target) for step in steps),
            noise=_rounded(schedule.noise(step) for step in steps),
        ),
        overlap_final=_rounded(final),
        progress=_rounded((final - final[0]) / moved if moved > 0 else np.ones(len(steps))),
        overlap_previous=[None, *_rounded(seen.overlap_previous(at) for at in later)],
        churn=[None, *(seen.churn(at) for at in later)],
        velocity=_rounded(seen.velocity()),
        undecided=_rounded(seen.undecided),
        hard_kl=[measured.get(step) for step in steps],
        open=_rounded(seen.opened),
        log_alpha=Histogram(edges=BINS.tolist(), counts=list(seen.counts)),
        stages=seen.timeline(draws=draws),
        **_places(seen, layout.graph),
    )


def _places(seen: Snapshots, graph: Graph) -> dict[str, Any]:
    """Where in the model the circuit's edges are: by reader, by pairs of layers, and how many can be reached."""
    layers = graph.n_layers
    per_layer = graph.readers_per_layer
    reader, writer = graph.reader_of.numpy(), graph.writer_of.numpy()
    reader_layer = reader // per_layer  # the logits, last, get n_layers
    bounds = np.cumsum([graph.n_heads, graph.n_kv_heads, graph.n_kv_heads])
    kind = np.where(reader_layer == layers, 4, np.searchsorted(bounds, reader % per_layer, side="right"))
    writer_layer = (writer - graph.inputs) // graph.writers_per_layer + 1  # the inputs get 0
    by_kind, flows, reachable = [], [], []
    for flat in seen.kept:
        kept = flat.reshape(-1, graph.n_edges)
        weight = kept.sum(0)
        by_kind.append(_counts(kind * (layers + 1) + reader_layer, weight, (5, layers + 1)))
        flows.append(_counts(writer_layer * (layers + 1) + reader_layer, weight, (layers + 1, layers + 1)))
        reachable.append(int(reachable_edges(graph, torch.from_numpy(kept)).sum()))
    counts, flow = np.stack(by_kind), np.stack(flows)
    pairs = np.argwhere(flow.any(0))
    in_layers = {name: counts[:, place, :layers].tolist() for place, name in enumerate(KINDS[:4])}
    return {
        "reachable": reachable,
        "kept": KeptByReader(**in_layers, logits=counts[:, 4, layers].tolist()),
        "flow": Flow(pairs=pairs.tolist(), counts=flow[:, pairs[:, 0], pairs[:, 1]].tolist()),
    }


def _counts(code: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(code, weight, shape[0] * shape[1]).astype(int).reshape(shape)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 6) for value in values]
