"""Effects of many senders, one path patch each: normalised, with intervals, and as a grid of heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.evaluate.statistics import Estimate, ratio_estimate
from circuitlit.graph import Graph
from circuitlit.heads.path_patching import PatchBed, path_patch
from circuitlit.heads.watch import Watch, unwatched


@dataclass(frozen=True)
class Effects:
    """What patching each of some senders does.

    The normalised effect is `mean(patched - clean) / mean(clean - corrupted)`: 0 is no harm, -1 destroys the metric,
    values above 0 improve it.

    Attributes:
        writers: the senders, one path patch each.
        deltas: metric of the patched minus that of the clean run.
        scale: metric of the clean minus that of the corrupted run.
        groups: which pairs share a sentence.

    Source: arXiv 2407.10827, metrics of the IOI algorithm.
    """

    writers: tuple[int, ...]
    deltas: Float[Tensor, "sender pair"]
    scale: Float[Tensor, "pair"]
    groups: Int[Tensor, "pair"]

    def means(self) -> Float[Tensor, "sender"]:
        """Normalised effect of every sender."""
        return self.deltas.double().mean(1) / self.scale.double().mean()

    def estimate(self, writer: int) -> Estimate:
        """Normalised effect of one sender with its interval over pairs."""
        return ratio_estimate(self.deltas[self.writers.index(writer)], self.scale, self.groups)

    def grid(self, graph: Graph) -> Float[Tensor, "layer head"]:
        """Normalised effects of heads; NaN for heads that were not patched."""
        effects = torch.full((graph.n_writers,), torch.nan, dtype=torch.float64)
        effects[list(self.writers)] = self.means()
        return graph.by_head(effects)


def path_effects(
    bed: PatchBed,
    senders: Iterable[int],
    receivers: Sequence[int],
    through_mlps: bool = False,
    watch: Watch = unwatched,
) -> Effects:
    """Path patch every sender by itself into all receivers together; senders that no receiver sees are left out."""
    furthest = max(int(bed.graph.visible[receiver]) for receiver in receivers)
    able = tuple(writer for writer in senders if writer < furthest)
    patched = [
        path_patch(bed, [writer], receivers, through_mlps) - bed.metric for writer in watch(able, "path patching")
    ]
    deltas = torch.stack(patched) if patched else torch.empty(0, len(bed.metric))
    return Effects(able, deltas, bed.scale, bed.groups)


def head_writers(graph: Graph) -> list[int]:
    """All heads, as writers."""
    return graph.by_head(torch.arange(graph.n_writers)).flatten().tolist()


def head_reader(graph: Graph, layer: int, head: int, kind: str) -> int:
    """The q, k or v reader of a query head; with grouped-query attention k and v are those of its group."""
    group = graph.n_heads // graph.n_kv_heads
    place = {"q": head, "k": graph.n_heads + head // group, "v": graph.n_heads + graph.n_kv_heads + head // group}
    return graph.reader_rows(layer).start + place[kind]
