"""`measure_stability`: what of a circuit is found again from other pairs, sentences, seeds, starts and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

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
from circuitlit.evaluate.trust.identity import identity
from circuitlit.evaluate.trust.made import Made
from circuitlit.evaluate.trust.procedure import Procedure
from circuitlit.evaluate.trust.stability import Cause, Halves, Stability
from circuitlit.graph import Circuit, MaskLayout
from circuitlit.masked.ablation import KINDS
from circuitlit.progress import told
from circuitlit.store import Store

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
    folder: Path | str | None = None,
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
        folder: keeps every circuit, so that a call that was stopped goes on; None keeps nothing.
        seed: of everything random.

    Raises:
        UserError: no such cause, no half, or it is not said how the circuit was found.

    Source: complementary halves, Shah and Samworth (see `core_bound`); bootstrap of circuits, arXiv 2510.00845.
    """
    if set(causes) - set(CAUSES) or not causes:
        raise UserError(f"causes={list(causes)} are not some of {', '.join(CAUSES)}")
    if halves < 2 or resamples < 2 or seeds < 2:
        raise UserError("halves, resamples and seeds: one says nothing about change; take at least 2")
    procedure = Procedure.of(circuit, method, masks, schedule, gates, error_weight)
    bench = replace(bench, count=circuit.n_edges, layout=MaskLayout(circuit.graph, circuit.scores.roles))
    bed = TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs)) if pairs else None
    with ExitStack() as stack:
        store = Store(Path(stack.enter_context(TemporaryDirectory()) if folder is None else folder))
        known = identity(bench, circuit) | procedure.identity | {"pairs_run": pairs}
        again = Again(bench, procedure, bed, store, known, seed)
        compared = baseline if procedure.schedule is not None else None
        beside = Resampler(bench, compared) if compared else None
        found = []
        for cause in CAUSES[:2]:
            if cause in causes:
                splits = _splits(again, cause, halves, resamples)
                found.append(
                    splits
                    if isinstance(splits, Halves)
                    else _halves(again, circuit, cause, splits, halves, beside, share)
                )
        changed = [_cause(again, cause, seeds) for cause in CAUSES[2:] if cause in causes]
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


def _halves(
    again: Again,
    circuit: Circuit,
    of: str,
    splits: list[tuple[Rows, Rows]],
    halves: int,
    beside: Resampler | None,
    share: float,
) -> Halves:
    """Circuits from complementary halves, and what they say together; KLs of the first `halves` splits."""
    made, bench = [], again.bench
    for number, sides in told(enumerate(splits), f"halves of the {of}", len(splits)):
        for side, rows in enumerate(sides):
            made.append(again.on(f"{of}_{number}_{side}", rows, measured=number < halves))
    others = [Made.of(bench, beside(rows)) for sides in splits for rows in sides] if beside else []
    return halves_of(circuit, made, others, again.bed, share, of=of, n_splits=len(splits))


def _cause(again: Again, name: str, seeds: int) -> Cause:
    """Circuits on all training pairs that differ in one thing."""
    bench, seed, trains = again.bench, again.seed, again.procedure.schedule is not None
    if name in ("seed", "start") and not trains:
        return Cause(name=name, reason=f"{again.procedure.text} has no {name}")
    base = again.whole
    if name == "seed":
        numbers = range(seed + 1, seed + seeds)
        made, changed = [again.made(f"seed_{one}", bench, one) for one in numbers], f"{seeds} seeds"
        return _compared(name, changed, list(combinations([base, *made], 2)), again)
    if name == "start":
        made, changed = [again.made("start_equal", bench, start="equal")], "all masks open instead"
    else:
        own, there = bench.references.kind, bench.data.train.collate([0]).has_corrupted
        kinds = [kind for kind in KINDS if kind not in (own, "optimal") and (there or kind != "interchange")]
        changed = f"{' and '.join(kinds)} instead of {own}"
        made = [
            again.made(f"ablation_{kind}", replace(bench, references=bench.ablated(Ablation(kind))), kind=kind)
            for kind in kinds
        ]
    return _compared(name, changed, [(base, one) for one in made], again)


def _compared(name: str, changed: str, pairs: list[tuple[Made, Made]], again: Again) -> Cause:
    values = [alike(one, two, again.bench.layout.n_edges) for one, two in pairs]
    found = Estimate(sum(values) / len(values), min(values), max(values))
    circuits = len({id(one) for pair in pairs for one in pair})
    return Cause(name=name, changed=changed, n_circuits=circuits, alike=found)
