"""What finding a circuit again and again says of it: edges that are always found, and what makes the others change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from circuitlit.evaluate.statistics import Estimate
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Circuits from halves of the training pairs that have nothing in common, each with start scores of its own.

    pi of an edge is the share of these circuits that keep it. Intervals of `alike`, `baseline` and `beyond` speak for
    other halves of these training pairs.

    Attributes:
        of: what is halved: "pairs", or "sentences" with all of their pairs.
        n_splits, n_circuits: ways to halve them, and circuits, two a way.
        reason: why there is nothing.
        edges, pi: numbers of the edges that any circuit keeps, and their pi, in (0, 1].
        core: edges with a pi of at least the result's `share`.
        bound: expected number of edges in the core whose true pi is at most chance, at most; `core_bound`.
        squares, shared: sum of pi squared, and mean number of edges that two different circuits share, which estimates
            the sum of squares of the true pi.
        kept: mean share of the given circuit's edges that such a circuit keeps.
        alike: J* of two complementary halves, mean over splits; 0 chance, 1 the same circuit.
        baseline: that of another attribution on the same halves, and `beyond` how far `alike` is above it.
        members_kl, core_kl, consensus_kl: KL(model || circuit) of the circuits, mean; of the core alone; and of the
            consensus, as many edges as the circuit has, those of largest pi. Nats.
        consensus_minus_members: the difference, pair by pair; at most 0 says that the consensus is as good.
    """

    of: str
    n_splits: int = 0
    n_circuits: int = 0
    reason: str | None = None
    edges: list[int] = field(default_factory=list)
    pi: list[float] = field(default_factory=list)
    core: int = 0
    bound: float = 0.0
    squares: float = 0.0
    shared: float = 0.0
    kept: float = 0.0
    alike: Estimate | None = None
    baseline: Estimate | None = None
    beyond: Estimate | None = None
    members_kl: Estimate | None = None
    core_kl: Estimate | None = None
    consensus_kl: Estimate | None = None
    consensus_minus_members: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Circuits that differ in one thing alone.

    Attributes:
        name: "seed", "start" or "ablation".
        changed: what it was.
        n_circuits: circuits that are compared.
        alike: J*, mean; `low` and `high` are the least and the largest of every two, no interval.
        reason: why there is nothing.
    """

    name: str
    changed: str = ""
    n_circuits: int = 0
    alike: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Stability(Result):
    """What `measure_stability` found.

    Attributes:
        task, model, ablation: what was asked.
        method: how the given circuit was found, by its file.
        procedure: how circuits were found anew.
        baseline: the attribution that is compared with it on the same halves; None without one.
        n_edges, n_edges_total: of every circuit and of the graph, an edge counted once a token role.
        n_pairs: test pairs of the KLs.
        share: of the circuits that an edge of the core is in.
        halves: by pairs and by sentences.
        causes: seed, start and ablation, one at a time, on all training pairs.
    """

    schema: ClassVar[str] = "stability"
    file: ClassVar[str] = "stability.json"
    indent: ClassVar[int | None] = None

    task: str
    model: str
    ablation: str
    method: str
    procedure: str
    baseline: str | None
    n_edges: int
    n_edges_total: int
    n_pairs: int
    share: float
    halves: list[Halves]
    causes: list[Cause]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a cause of change, halves first."""
        for one in self.halves:
            values = {name: getattr(one, name) and getattr(one, name).value for name in ("alike", "baseline")}
            sizes = {"core": one.core, "bound": one.bound, "circuits": one.n_circuits}
            yield {"cause": one.of, **values, **sizes, "reason": one.reason}
        for cause in self.causes:
            values = {"alike": cause.alike and cause.alike.value, "circuits": cause.n_circuits}
            yield {"cause": cause.name, **values, "reason": cause.reason}


def core_bound(n_edges: int, n_edges_total: int, share: float) -> float:
    """Most edges with a true pi of at most chance, n/E, that are expected to be in a share of the circuits.

    It is n^2 / (E (2 share - 1)), for any number of complementary halves, and needs units that are independent. There
    is none for a share of one half or less, where it is all of the circuit.

    Source: Shah and Samworth, Journal of the Royal Statistical Society B 75 (2013), theorem 1 with theta = n/E, without
    exchangeability; the number is that of Meinshausen and Buehlmann, ibid. 72 (2010).
    """
    return min(n_edges, n_edges**2 / (n_edges_total * (2 * share - 1))) if share > 0.5 else float(n_edges)
