"""`measure_robustness`: is a circuit found again when a share of the pairs is perturbed?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from circuitlit.arguments import checks_arguments
from circuitlit.discover.gates import Gates
from circuitlit.discover.method import Method
from circuitlit.discover.schedule import Schedule
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.overlap import StandIns
from circuitlit.evaluate.statistics import Estimate, mean_estimate, mean_of_halves
from circuitlit.evaluate.trust.again import LEAST_UNITS, Again, Rows, splits_of, too_few, units_of
from circuitlit.evaluate.trust.halves import alike
from circuitlit.evaluate.trust.identity import identity, identity_of_search
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.procedure import Procedure
from circuitlit.evaluate.trust.robustness import Perturbed, Robustness
from circuitlit.graph import Circuit, MaskLayout
from circuitlit.store import Store, opened
from circuitlit.tasks.perturb import KINDS, perturb

STAND_INS = 5  # of each circuit; their mean over all halves is what counts


@checks_arguments
def measure_robustness(
    bench: Workbench,
    circuit: Circuit,
    *,
    method: Method | None = None,
    masks: bool | None = None,
    kinds: Sequence[str] = ("noise",),
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    draws: int = 5,
    resamples: int = 100,
    pairs: int = 64,
    schedule: Schedule | None = None,
    gates: Gates | None = None,
    error_weight: float | None = None,
    folder: Path | str | Store | None = None,
    seed: int = 0,
) -> Robustness:
    """Find circuits of the same size from pairs of which a share is perturbed, beside two controls.

    The training sentences are halved at random, again and again. From one half's pairs a circuit is found, then one
    with a share of these perturbed (more of them at a larger share, never others), one with as many replaced by pairs
    of the other half, unperturbed, and one with all of them perturbed. An overlap at some share says something only
    beside these: other pairs change a circuit, too, and where a circuit of nothing but spoilt pairs is much the same,
    the method finds it whatever the pairs say. Constants that stand in for cut edges are those of each circuit's pairs,
    or of all where a method scores pair by pair.

    Args:
        bench: subject, pairs and masked model.
        circuit: any circuit, for its size and procedure; of gates, masks are trained anew, else `method` is run anew.
        method: the attribution that found it, or that its masks started from; None takes mask gradients for masks.
        masks: True trains masks whatever the circuit's scores are; None goes by these.
        kinds: how pairs are perturbed: "noise", "mixed", "swapped"; see `perturb`.
        shares: of the pairs that are perturbed; all of them are always perturbed as well. One that perturbs no pair is
            not measured.
        draws: halves that circuits are found from.
        resamples: such halves where a method scores pair by pair, so that they cost two passes; the first `draws` have
            KLs and are compared with circuits of equal degrees.
        pairs: most test pairs of the KLs, of as many sentences as possible; 0 measures none.
        schedule, gates, error_weight: of the masks' training; None takes those of `find_circuit`.
        folder: keeps trained circuits, so that a call that was stopped goes on; a `Share` shares them out to several
            processes; None keeps nothing.
        seed: of everything random.

    Raises:
        UserError: no such kind or share, too few draws, or it is not said how the circuit was found.
        InUse: another process of a `Share` makes some of the circuits.

    Source: the question is that of Wang et al. (arXiv 2502.11812), who take the Jaccard index of circuits' edges for a
    circuit's robustness, before and after fine-tuning; correction for chance, controls and perturbations are ours.
    """
    if set(kinds) - set(KINDS) or not kinds:
        raise UserError(f"kinds={list(kinds)} are not some of {', '.join(KINDS)}")
    if not all(0 <= share <= 1 for share in shares):
        raise UserError(f"shares={list(shares)} are not between 0 and 1")
    if draws < 2 or resamples < 2:
        raise UserError("draws and resamples: one has no spread; take at least 2")
    procedure = Procedure.of(circuit, method, masks, schedule, gates, error_weight)
    bench = replace(bench, count=circuit.n_edges, layout=MaskLayout(circuit.graph, circuit.scores.roles))
    bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs)) if pairs else None
    levels, found = sorted({*map(float, shares), 1.0}), []
    with opened(folder) as store:
        known = identity(bench, circuit) | identity_of_search(bench) | procedure.identity | {"pairs_run": pairs}
        for kind in dict.fromkeys(kinds):
            changed = perturb(bench.data.train, kind, seed)
            units = [[row for row in unit if changed[row]] for unit in units_of(bench.data.train)]
            units = [unit for unit in units if unit]
            if len(units) < LEAST_UNITS:
                found.append(Perturbed(kind=kind, share=1.0, reason=f"{kind}: {too_few(len(units), 'sentences')}"))
                continue
            rows = [new or old for new, old in zip(changed, bench.data.train.rows, strict=True)]
            again = Again(bench.with_more(rows), procedure, bed, store, known, seed)
            count = draws if again.resampler is None else max(draws, resamples)
            halves = _Halves(again, kind, splits_of(units, count, seed), draws, len(units))
            found += halves.perturbed(levels)
    return Robustness(
        task=bench.data.splits.name,
        model=bench.subject.name,
        ablation=bench.references.kind,
        method=circuit.scores.method,
        procedure=procedure.text,
        n_edges=circuit.n_edges,
        n_edges_total=circuit.kept.numel(),
        n_sentences=len(units_of(bench.data.train)),
        n_halves=max((len(one.each) for one in found), default=0),
        n_pairs=len(bed.full.kl) if bed else 0,
        perturbed=found,
    )


@dataclass(frozen=True)
class _Plan:
    """Circuits that one half needs.

    Attributes:
        asked: their pairs, by the names of their files.
        perturbed, replaced: those of each share, with as many pairs perturbed, or replaced by pairs of the other half.
        counts: those pairs.
    """

    asked: dict[str, Rows]
    perturbed: list[str]
    replaced: list[str]
    counts: list[int]


@dataclass(frozen=True)
class _Drawn:
    """Circuits of one half.

    Attributes:
        intact: of its pairs as they are.
        perturbed, replaced: at each share, with as many pairs perturbed, or replaced by pairs of the other half.
        counts: those pairs.
        beside: random stand-ins for the first.
    """

    intact: Made
    perturbed: list[Made]
    replaced: list[Made]
    counts: list[int]
    beside: StandIns


@dataclass(frozen=True)
class _Halves:
    """Random halves of the training sentences, with circuits of pairs perturbed in one way.

    Attributes:
        again: finds circuits; behind the training pairs are as many perturbed ones.
        kind: how they are.
        splits: rows of a half, and of the other one.
        measured: of them that have KLs.
        units: sentences that are halved.
    """

    again: Again
    kind: str
    splits: list[tuple[Rows, Rows]]
    measured: int
    units: int

    def perturbed(self, shares: Sequence[float]) -> list[Perturbed]:
        """What becomes of the circuits at each share."""
        plans = [self._plan(number, shares) for number in range(len(self.splits))]
        asked = {name: rows for plan in plans for name, rows in plan.asked.items()}
        made = self.again.made(asked, [name for plan in plans[: self.measured] for name in plan.asked])
        drawn = [self._drawn(number, plan, made) for number, plan in enumerate(plans)]
        return [self._level(drawn, place, share) for place, share in enumerate(shares)]

    def _plan(self, number: int, shares: Sequence[float]) -> _Plan:
        own, other = self.splits[number]
        rng, far = random.Random(f"{self.again.seed} {number}"), len(self.again.bench.data.train) // 2
        order, spare = rng.sample(own, len(own)), cycle(rng.sample(other, len(other)))
        worse, better = {row: row + far for row in own}, dict(zip(order, spare, strict=False))
        first = {row: place for place, row in enumerate(order)}
        counts = [round(share * len(own)) for share in shares]

        asked = {f"intact_{number}_0": own}

        def named(way: str, instead: dict[int, int], count: int) -> str:
            if not count:
                return f"intact_{number}_0"
            name = f"{way}_{number}_{count}"
            asked[name] = [instead[row] if first[row] < count else row for row in own]
            return name

        ways = ((self.kind, worse), ("replaced", better))
        ours, theirs = ([named(way, instead, count) for count in counts] for way, instead in ways)
        return _Plan(asked, ours, theirs, counts)

    def _drawn(self, number: int, plan: _Plan, made: dict[str, Made]) -> _Drawn:
        intact = made[f"intact_{number}_0"]
        ours, theirs = ([made[name] for name in names] for names in (plan.perturbed, plan.replaced))
        return _Drawn(intact, ours, theirs, plan.counts, self._stand_ins(intact, 2 * number))

    def _level(self, drawn: Sequence[_Drawn], place: int, share: float) -> Perturbed:
        if not any(one.counts[place] for one in drawn):
            return Perturbed(kind=self.kind, share=share, reason="no pair is perturbed at this share")
        total = self.again.bench.layout.n_edges
        ours, theirs = ([getattr(one, way)[place] for one in drawn] for way in ("perturbed", "replaced"))
        each, others = (
            [alike(one.intact, made, total) for one, made in zip(drawn, way, strict=True)] for way in (ours, theirs)
        )
        return Perturbed(
            kind=self.kind,
            share=share,
            pairs=sum(one.counts[place] for one in drawn) / len(drawn),
            alike=mean_of_halves(each, self.units),
            beyond_degrees=self._beyond_degrees(drawn[: self.measured], place),
            replaced=mean_of_halves(others, self.units),
            minus_replaced=mean_of_halves([a - b for a, b in zip(each, others, strict=True)], self.units),
            **self._losses(ours[: self.measured], theirs[: self.measured]),
            each=each,
        )

    def _beyond_degrees(self, drawn: Sequence[_Drawn], place: int) -> Estimate:
        sides = [self._stand_ins(one.perturbed[place], 2 * number + 1) for number, one in enumerate(drawn)]
        pairs = zip(drawn, sides, strict=True)
        overlaps = [side.edge_overlap(one.beside) for one, side in pairs]
        return mean_of_halves([overlap.chance["degrees"].corrected for overlap in overlaps], self.units)

    def _stand_ins(self, made: Made, seed: int) -> StandIns:
        graph, kept = self.again.bench.subject.graph, torch.zeros(self.again.bench.layout.n_edges, dtype=torch.bool)
        kept[made.edges] = True
        return StandIns(graph, kept.view(-1, graph.n_edges).any(0), STAND_INS, seed)

    def _losses(self, ours: Sequence[Made], theirs: Sequence[Made]) -> dict[str, Any]:
        bed = self.again.bed
        if bed is None:
            return {}
        own, other = (torch.tensor([one.kl for one in way], dtype=torch.float64) for way in (ours, theirs))
        group = bed.full.group
        return {"kl": mean_estimate(own, group), "kl_minus_replaced": mean_estimate(own - other, group)}
