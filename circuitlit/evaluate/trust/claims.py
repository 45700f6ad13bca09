"""Parts of the trust card that are rows from the start: preserved, chance, minimal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from scipy.stats import binomtest

from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.knockouts import completeness
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.testing import LEVEL, benjamini_hochberg, rank_p
from circuitlit.evaluate.trust.chance import chance_rows
from circuitlit.evaluate.trust.preserved import preserved_rows
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.evaluate.verdict import Bars, measure_controls
from circuitlit.graph import Circuit
from circuitlit.progress import told
from circuitlit.result import Result

MOST_SENTENCES = 64  # of which random circuits see a pair: they are some two hundred


@dataclass(frozen=True, kw_only=True, repr=False)
class Claims(Result):
    """Rows of a part of the trust card.

    Attributes:
        claims: the rows.
    """

    schema: ClassVar[str] = "claims"
    file: ClassVar[str] = "claims.json"

    claims: list[TrustRow]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a claim."""
        yield from map(asdict, self.claims)


def measure_preserved(bench: Workbench, circuit: Circuit, *, pairs: int = 200, seed: int = 0) -> Claims:
    """Whether a circuit is neither worse nor better than the model on the test pairs; `preserved_rows`.

    Args:
        bench: subject, pairs and masked model.
        circuit: its edges.
        pairs: most test pairs, of as many sentences as possible.
        seed: of nothing; all parts take one.
    """
    bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs))
    return Claims(claims=preserved_rows(bed.run(circuit.kept), bed.full, bed.corrupted))


def measure_chance(bench: Workbench, circuit: Circuit, *, draws: int = 99, pairs: int = 16, seed: int = 0) -> Claims:
    """Whether a circuit is better than random ones; `chance_rows`.

    Args:
        bench: subject, pairs and masked model.
        circuit: its edges.
        draws: random circuits, and as many shuffles; fewer than 40 cannot be significant.
        pairs: test pairs that they run on, at least one of every sentence; of more than 64 sentences, of 64.
        seed: of nothing; draws are numbered.
    """
    pairs = max(pairs, min(bench.data.test.n_groups, MOST_SENTENCES))
    bed, bars = (
        TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs)),
        Bars(controls=draws, control_pairs=pairs),
    )
    found = measure_controls(bench, bed, circuit, bed.run(circuit.kept), bars)
    return Claims(claims=chance_rows(found.pop("subset"), found))


def measure_need(
    bench: Workbench,
    circuit: Circuit,
    *,
    edges: int = 128,
    random: int = 100,
    knockouts: int = 10,
    pairs: int = 16,
    seed: int = 0,
) -> Claims:
    """Which edges a circuit needs more than any random edge, and whether the model needs more than the circuit.

    An edge is needed if its loss raises the KL by more than the loss of random edges that were added does, at a false
    discovery rate of 5 % (Benjamini-Hochberg); else it is idle. The interval speaks for all reachable edges. With few
    random edges, few needed ones cannot be told: where none is, the interval allows for as many as could be missed.

    Args:
        bench: subject, pairs and masked model.
        circuit: its edges.
        edges: most of its reachable edges, drawn.
        random: edges outside of it that are added and removed; at least 20, for a p below .05.
        knockouts: random sets of nodes that circuit and model go without.
        pairs: most test pairs.
        seed: of all draws.

    Raises:
        UserError: too few random edges, or a circuit without a reachable edge.

    Source: edges needed, Shi et al. (arXiv 2410.13032), who compare with a fixed share of 100 random edges;
    completeness, Wang et al. (arXiv 2211.00593) section 4.
    """
    inside, outside = circuit.reachable.flatten().nonzero()[:, 0], (~circuit.kept).flatten().nonzero()[:, 0]
    if random < 20 or not len(inside) or not len(outside):
        raise UserError(f"random={random} edges, {len(inside)} in the circuit and {len(outside)} outside are too few")
    bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs))
    draw = torch.Generator().manual_seed(seed)
    taken, added = (
        part[torch.randperm(len(part), generator=draw)[:count]].tolist()
        for part, count in ((inside, edges), (outside, random))
    )
    whole = float(bed.run(circuit.kept).kl.mean())
    lost = [kl - whole for kl in _without(bed, circuit, taken)]
    null = [whole - kl for kl in _without(bed, circuit, added)]
    share = idle_share([rank_p(one, null) for one in lost], len(null))
    said = f"share of {len(taken)} of {len(inside):,} reachable edges that are needed no more than random ones"
    rest = completeness(bed, circuit, knockouts, seed=seed)
    sizes: dict[str, Any] = {"pairs": len(bed.full.kl), "groups": len(bed.full.group.unique())}
    lacks = int((~torch.isfinite(bed.full.metric)).sum())
    why = f"{lacks} of {len(bed.full.kl)} pairs do not have the task's metric" if lacks else None
    gone = "share of the behaviour that is gone without the circuit"
    rows = [
        TrustRow.of("minimal.idle", said, share, draws=len(added), **sizes),
        TrustRow.of("minimal.complete", gone, rest.completeness, why=why, **sizes),
        TrustRow.of(
            "minimal.knockouts",
            "faithfulness by which circuit and model differ without the same nodes",
            rest.knockout_gap,
            why=why if rest.n_knockouts else "no nodes were removed",
            draws=rest.n_knockouts,
            **sizes,
        ),
    ]
    return Claims(claims=rows)


def idle_share(p: Sequence[float], draws: int) -> Estimate:
    """Share of edges that are not needed, from the rank of each one's loss among those of random edges.

    The least p of that many draws is 1 / (draws + 1): fewer edges than `tests / (level * (draws + 1))` are never told,
    however much they lose. Where none is told, the lower end of the interval is that of as many needed ones.
    """
    idle = sum(value > LEVEL for value in benjamini_hochberg(p))
    missed = min(idle, math.ceil(len(p) / (LEVEL * (draws + 1)) - 1e-9) - 1) if idle == len(p) else 0
    low, high = (binomtest(count, len(p)).proportion_ci(method="exact") for count in (idle - missed, idle))
    return Estimate(idle / len(p), float(low.low), float(high.high))


def _without(bed: TestBed, circuit: Circuit, edges: list[int]) -> Iterator[float]:
    """KL of the circuit with each of some edges changed: removed where it has it, else added."""
    for edge in told(edges, "edges", len(edges)):
        kept = circuit.kept.clone()
        kept.view(-1)[edge] ^= True
        yield float(bed.run(kept).kl.mean())
