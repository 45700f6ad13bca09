"""`measure_stability`: what of a circuit is found again from other pairs, sentences, seeds, starts and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

from circuitlit.arguments import checks_arguments
from circuitlit.discover.gates import Gates
from circuitlit.discover.method import Method
from circuitlit.discover.methods.eap_ig import eap_ig
from circuitlit.discover.schedule import Schedule
from circuitlit.discover.workbench import Ablation, Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust.again import LEAST_UNITS, Again, Rows, splits_of, too_few, units_of
from circuitlit.evaluate.trust.halves import alike, halves_of
from circuitlit.evaluate.trust.identity import identity, identity_of_search
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.procedure import Procedure
from circuitlit.evaluate.trust.stability import Cause, Halves, Stability
from circuitlit.graph import Circuit, MaskLayout
from circuitlit.masked.ablation import KINDS, Kind
from circuitlit.store import Part, Store, opened

CAUSES = ("pairs", "sentences", "seed", "start", "ablation")
BASELINE = Method.of(eap_ig, steps=5)


@checks_arguments
def measure_stability(
    bench: Workbench,
    circuit: Circuit,
    *,
    method: Method | None = None,
    masks: bool | None = None,
    causes: Sequence[str] = CAUSES,
    halves: int = 10,
    resamples: int = 200,
    seeds: int = 3,
    share: float = 0.9,
    pairs: int = 64,
    baseline: Method | None = BASELINE,
    schedule: Schedule | None = None,
    gates: Gates | None = None,
    error_weight: float | None = None,
    folder: Path | str | Store | None = None,
    seed: int = 0,
) -> Stability:
    """Find circuits of the same size again and again, and tell which edges stay and what makes the others change.

    Each half of the training pairs has start scores of its own. The seed stays where pairs change, and the pairs where
    the seed does.

    Args:
        bench: subject, pairs and masked model.
        circuit: any circuit; of gates, masks are trained anew, else `method` is run anew.
        method: the attribution that found it, or that its masks started from; None takes mask gradients for masks.
        masks: True trains masks whatever the circuit's scores are; None goes by these.
        causes: what is changed: "pairs", "sentences", "seed", "start", "ablation".
        halves: splits of the training pairs into two halves, so twice as many circuits.
        resamples: splits where a method scores pair by pair, so that they cost no further pass.
        seeds: of masks, on all training pairs.
        share: of the circuits that an edge of the core is in.
        pairs: most test pairs of the KLs, of as many sentences as possible; 0 measures none.
        baseline: an attribution on the same halves, for comparison; None, or an attribution's circuit, takes none.
        schedule, gates, error_weight: of the masks' training; None takes those of `find_circuit`.
        folder: keeps every circuit, so that a call that was stopped goes on; a `Share` shares them out to several
            processes; None keeps nothing.
        seed: of everything random.

    Raises:
        UserError: no such cause, no half, or it is not said how the circuit was found.
        InUse: another process of a `Share` makes some of the circuits.

    Source: complementary halves, Shah and Samworth (see `core_bound`); bootstrap of circuits, arXiv 2510.00845.
    """
    if set(causes) - set(CAUSES) or not causes:
        raise UserError(f"causes={list(causes)} are not some of {', '.join(CAUSES)}")
    if halves < 2 or resamples < 2 or seeds < 2:
        raise UserError("halves, resamples and seeds: one says nothing about change; take at least 2")
    procedure = Procedure.of(circuit, method, masks, schedule, gates, error_weight)
    bench = replace(bench, count=circuit.n_edges, layout=MaskLayout(circuit.graph, circuit.scores.roles))
    bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs)) if pairs else None
    compared = baseline if procedure.schedule is not None else None
    with opened(folder) as store:
        known = identity(bench, circuit) | identity_of_search(bench) | procedure.identity | {"pairs_run": pairs}
        again = Again(bench, procedure, bed, store, known, seed)
        splits = {cause: _splits(again, cause, halves, resamples) for cause in CAUSES[:2] if cause in causes}
        asked = {name: rows for of, ways in splits.items() for name, rows in _halves(of, ways).items()}
        measured = [name for of, ways in splits.items() for name in _halves(of, ways, halves)]
        others = {cause: _others(again, cause, seeds) for cause in CAUSES[2:] if cause in causes}
        also = {part.name: part for other in others.values() if not isinstance(other, Cause) for part in other[1]}
        made = again.made(asked, measured, also.values())
        beside = Resampler(bench, compared) if compared else None
        found = [
            ways
            if isinstance(ways, Halves)
            else halves_of(
                circuit,
                [made[name] for name in _halves(of, ways)],
                [Made.of(bench, beside(rows)) for sides in ways for rows in sides] if beside else [],
                bed,
                share,
                of=of,
                n_splits=len(ways),
            )
            for of, ways in splits.items()
        ]
        changed = [
            other if isinstance(other, Cause) else _compared(cause, *other, made, again)
            for cause, other in others.items()
        ]
    return Stability(
        task=bench.data.splits.name,
        model=bench.subject.name,
        ablation=bench.references.kind,
        method=circuit.scores.method,
        procedure=procedure.text,
        baseline=compared.name if compared else None,
        n_edges=circuit.n_edges,
        n_edges_total=circuit.kept.numel(),
        n_pairs=len(bed.full.kl) if bed else 0,
        share=share,
        halves=found,
        causes=changed,
    )


def _splits(again: Again, of: str, halves: int, resamples: int) -> list[tuple[Rows, Rows]] | Halves:
    """Ways to halve the training pairs; where there are none, a result that says why."""
    train = again.bench.data.train
    if of == "sentences" and train.n_groups == len(train):
        return Halves(of=of, reason="every pair has a sentence of its own")
    units = units_of(train) if of == "sentences" else [[row] for row in range(len(train))]
    if len(units) < LEAST_UNITS:
        return Halves(of=of, reason=too_few(len(units), of))
    return splits_of(units, halves if again.resampler is None else resamples, again.seed)


def _halves(of: str, splits: list[tuple[Rows, Rows]] | Halves, most: int | None = None) -> dict[str, Rows]:
    """The pairs of both sides of each split, of the first ones alone where it is said how many."""
    ways = [] if isinstance(splits, Halves) else splits[:most]
    return {f"{of}_{number}_{side}": rows for number, sides in enumerate(ways) for side, rows in enumerate(sides)}


def _others(again: Again, name: str, seeds: int) -> tuple[str, list[Part[Made]]] | Cause:
    """What is changed in one thing, and circuits on all training pairs with and without it; or why there are none.

    The first is the one without, but where it costs no pass of its own it is not among them.
    """
    bench, seed, trains = again.bench, again.seed, again.procedure.schedule is not None
    if name in ("seed", "start") and not trains:
        return Cause(name=name, reason=f"{again.procedure.text} has no {name}")
    base = [again.part(f"seed_{seed}")] if again.resampler is None else []
    if name == "seed":
        return f"{seeds} seeds", base + [again.part(f"seed_{one}", seed=one) for one in range(seed + 1, seed + seeds)]
    if name == "start":
        return "all masks open instead", [*base, again.part("start_equal", start="equal")]
    own, there = bench.references.kind, bench.data.train.collate([0]).has_corrupted
    kinds = [kind for kind in KINDS if kind not in (own, "optimal") and (there or kind != "interchange")]
    parts = [again.part(f"ablation_{kind}", partial(_ablated, bench, kind), kind=kind) for kind in kinds]
    return f"{' and '.join(kinds)} instead of {own}", base + parts


def _ablated(bench: Workbench, kind: Kind) -> Workbench:
    return replace(bench, references=bench.ablated(Ablation(kind)))


def _compared(name: str, changed: str, parts: list[Part[Made]], made: dict[str, Made], again: Again) -> Cause:
    circuits = [made[part.name] for part in parts]
    if again.resampler is not None:
        circuits = [Made.of(again.bench, again.resampler.scores), *circuits]
    first, *others = circuits
    pairs = list(combinations(circuits, 2)) if name == "seed" else [(first, one) for one in others]
    values = [alike(one, two, again.bench.layout.n_edges) for one, two in pairs]
    found = Estimate(sum(values) / len(values), min(values), max(values))
    return Cause(name=name, changed=changed, n_circuits=len(circuits), alike=found)
