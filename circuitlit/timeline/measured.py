"""What is measured of a task at one checkpoint: behaviour, circuit, the smallest faithful circuit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from lightning import seed_everything
from torch import Tensor

from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Behaviour, TestBed, paired_difference, summarise
from circuitlit.evaluate.baseline import validation
from circuitlit.evaluate.similarity import corrected_jaccard, noise_floor
from circuitlit.evaluate.smallest import smallest_circuit
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.heads import NamePlaces, PatchBed, copying_of_pairs, heads_in_circuit, ioi_algorithm, repeat_scores
from circuitlit.heads.backup import find_backup
from circuitlit.heads.places import NAMES
from circuitlit.heads.roles import head_name, heads_of
from circuitlit.timeline.cells import AlgorithmParts, MeasuredCircuit, SmallestCircuit, TaskAtCheckpoint
from circuitlit.timeline.measured_heads import FollowSettings, repeated
from circuitlit.timeline.series import Noise

Learn = Callable[[Workbench], tuple[EdgeScores, EdgeScores | None]]  # masks, and others that began anew


def measure_task(
    bench: Workbench, method: Method, settings: FollowSettings, folder: Path, final: bool, learn: Learn | None = None
) -> TaskAtCheckpoint:
    """One task at one checkpoint.

    Args:
        bench: the checkpoint's model and the task's pairs.
        method: how edges are scored.
        settings: what is measured.
        folder: gets the circuit of equal size and, under `smallest`, the smallest faithful one.
        final: True for the last checkpoint, which gets a noise floor.
        learn: learns masks instead.

    Raises:
        UserError: the task has no validation pairs.
    """
    seed_everything(settings.seed, verbose=False)
    subject, batches = bench.subject, bench.data.test.batches(bench.data.eval_batch_size)
    behaviour = Behaviour.measure(subject, batches)
    resampler = Resampler(bench, method) if final and settings.resamples > 1 and learn is None else None
    if learn is not None:
        scores, cold = learn(bench)
    else:
        scores, cold = bench.score(method) if resampler is None else resampler.scores, None
    circuit = bench.cut(scores)
    circuit.save(folder)
    batches = bench.data.test.batches(bench.data.eval_batch_size)
    bed = TestBed.build(bench.model, bench.fresh_references(), batches)
    searched = _smallest(bench, settings, scores, bed, folder)
    inside = heads_in_circuit(Circuit.load(folder / "smallest")) if searched["status"] == "OK" else None
    named = inside is None or bool(inside.any())
    noise = None
    if resampler is not None:
        floor = noise_floor(resampler, bench.cut, len(bench.data.train), settings.resamples, settings.seed)
        noise = Noise.of(*floor)
    return TaskAtCheckpoint(
        n_edges_total=bench.layout.n_edges,
        n_nodes_total=subject.graph.n_writers,
        method=scores.method,
        behaviour=behaviour,
        circuit=MeasuredCircuit(**_described(bed, circuit)),
        **searched,
        algorithm=_algorithm(bench, settings, inside) if named else None,
        cold_overlap=None if cold is None else corrected_jaccard(circuit.kept, bench.cut(cold).kept),
        noise=noise,
    )


def _smallest(
    bench: Workbench, settings: FollowSettings, scores: EdgeScores, bed: TestBed, folder: Path
) -> dict[str, Any]:
    """The smallest circuits, normalised and raw: chosen on validation pairs, measured on test pairs."""
    probe, nothing = validation(bench, settings.probe_pairs), {"smallest": None, "smallest_raw": None}
    if probe is None:
        raise UserError(f"task {bench.data.splits.name} has no validation pairs to choose the smallest circuit by")
    gap = paired_difference(probe.full.metric, probe.corrupted.metric, probe.full.group)
    if gap.bounds is None or gap.bounds[0] <= 0:
        reason = f"clean prompts are not clearly better than corrupted ones ({gap}), so no circuit explains anything"
        return {"status": "FAILED", "reason": reason, **nothing}
    if not settings.smallest:
        return {"status": "UNSEARCHED", "reason": None, **nothing}
    made, target = {}, settings.faithfulness
    for name, raw in (("smallest", False), ("smallest_raw", True)):
        found, circuit = smallest_circuit(probe, scores, target, raw, select=bench.select)
        made[name] = SmallestCircuit(**{**asdict(found), **_described(bed, circuit)})
        if name == "smallest" and found.status == "OK":
            circuit.save(folder / name)
    failed = made["smallest"].status == "FAILED"
    reason = f"no size reaches a faithfulness of {target:g}; the best is {made['smallest'].value}"
    return {"status": "FAILED" if failed else "OK", "reason": reason if failed else None, **made}


def _described(bed: TestBed, circuit: Circuit) -> dict[str, Any]:
    """Size, heads and, on held-out pairs, how good it is."""
    return {
        "n_edges": circuit.n_edges,
        "n_edges_reachable": circuit.n_reachable,
        "n_nodes": len(circuit.nodes()),
        "heads": [head_name(head) for head in heads_of(heads_in_circuit(circuit))],
        **vars(summarise([bed.run(circuit.kept)], bed.full, bed.corrupted)),
    }


def _algorithm(
    bench: Workbench, settings: FollowSettings, inside: Bool[Tensor, "layer head"] | None
) -> AlgorithmParts | None:
    """The IOI algorithm's shares and heads; None where it is not asked for or the task has no names.

    `inside` are the heads that the shares are of, those of the smallest faithful circuit; None takes all.
    """
    asked, pairs = settings.heads, bench.data.to_choose_on
    if asked.algorithm is None or not set(NAMES) <= set(pairs.role_names):
        return None
    batches = pairs.batches(bench.data.eval_batch_size, order=pairs.spread(asked.algorithm_pairs))
    bed = PatchBed.build(bench.subject, batches)
    places = [NamePlaces.of(batch, pairs.role_names) for batch in bed.batches]
    ids = repeated(bench.subject, settings)[0]
    scores = repeat_scores(bed.heads, ids, asked.length) | copying_of_pairs(bed, places)
    found = ioi_algorithm(bed, places, scores, pool=inside, parts=asked.algorithm)
    backup = None
    if asked.backup:  # on pairs that did not choose the name movers
        test = bench.data.test
        order = test.spread()[: asked.algorithm_pairs]
        held_out = PatchBed.build(bench.subject, test.batches(bench.data.eval_batch_size, order=order))
        backup = find_backup(held_out, found.roles["name_mover"], asked.backup, settings.seed)
    return AlgorithmParts(
        of="all heads" if inside is None else "the smallest faithful circuit",
        shares=found.shares,
        roles={role: [head_name(head) for head in heads] for role, heads in found.roles.items()},
        backup=backup,
    )
