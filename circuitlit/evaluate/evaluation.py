"""Any circuit, ours or another tool's, evaluated: controls, parts, sizes, the smallest faithful one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.baseline import validation
from circuitlit.evaluate.curves import Curve, size_curve
from circuitlit.evaluate.find import ask
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.evaluate.ground_truth import Reference, against
from circuitlit.evaluate.knockouts import completeness, edge_minimality, node_minimality
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.smallest import smallest_circuit
from circuitlit.evaluate.verdict import Bars, held_out, measure_circuit
from circuitlit.files import json_types
from circuitlit.graph import Circuit
from circuitlit.progress import phase

Ranking = Literal["own", "absolute", "signed"]


@checks_arguments
def evaluate_circuit(
    bench: Workbench,
    circuit: Circuit,
    *,
    curve_pairs: int | None = None,
    ranking: Ranking = "own",
    knockouts: int = 10,
    parts: int | None = 20,
    ablation_pairs: int = 16,
    smallest: float | None = None,
    reference: Reference | None = None,
    bars: Bars | None = None,
    seed: int = 0,
) -> FoundCircuit:
    """Evaluate a circuit on the test pairs of a workbench.

    Args:
        bench: subject, pairs and masked model.
        circuit: a file's (`load_circuit`) or a run's; scores alone are cut to the workbench's size.
        curve_pairs: test pairs for each point of the size curve; None takes all, 0 draws none.
        ranking: of the size curve.
        knockouts: random sets of the circuit's nodes to remove from both circuit and model.
        parts: nodes, and as many edges, whose removal is measured; None takes all.
        ablation_pairs: pairs for knockouts and parts.
        smallest: faithfulness of the smallest circuit, searched on validation pairs; None searches none.
        reference: a published circuit (`load_reference`), for ROC-AUC.
        bars: what the circuit is compared with, and has to clear.
        seed: of random sets.

    Raises:
        UserError: scores that cannot be ranked so, other token roles, or no validation pairs to search on.
    """
    numbers = {"curve_pairs": (curve_pairs, 0), "knockouts": (knockouts, 0), "parts": (parts, 0)}
    for name, (number, least) in (numbers | {"ablation_pairs": (ablation_pairs, 1)}).items():
        if number is not None and number < least:
            raise UserError(f"{name}={number} is below {least}; raise it")
    if smallest is not None and not math.isfinite(smallest):
        raise UserError(f"smallest={smallest} is no faithfulness that could be reached; give a number")
    bars = bars or Bars()
    circuit, bench = _fitted(circuit, bench, ranking)
    with phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        bed = held_out(bench)
        result = measure_circuit(bench, circuit, bed=bed, bars=bars, seed=seed)
    found: dict[str, Any] = {"behaviour": ask(bench, aloud=False)[0].to_dict()}
    if reference is not None:
        found["ground_truth"] = against(circuit.scores, reference)
    with phase("ablations", "Ablating the circuit and its parts"):
        found["completeness"] = completeness(bed, circuit, knockouts, ablation_pairs, seed).to_dict()
        found["minimality"] = {
            "nodes": node_minimality(bed, circuit, parts, ablation_pairs, seed).to_dict(),
            "edges": edge_minimality(bed, circuit, parts, ablation_pairs, seed).to_dict(),
        }
    with phase("curve", "Cutting the scores at other sizes"):
        if curve_pairs != 0:
            found["curve"] = _curve(bench, bed, circuit, ranking, curve_pairs, seed).to_dict()
        if smallest is not None:
            found["smallest"] = _smallest(bench, circuit, smallest, bars.probe_pairs)
    return result.replaced(**json_types(found))


def _fitted(found: Circuit, bench: Workbench, ranking: Ranking) -> tuple[Circuit, Workbench]:
    """The circuit, cut if it holds scores alone, and a workbench whose controls are of its size."""
    if ranking == "absolute" and found.scores.kind != "effect":
        raise UserError(
            "evaluate.ranking=absolute ranks effects by their size, the circuit holds scores without a sign; use "
            "evaluate.ranking=own"
        )
    circuit = found if found.n_edges else bench.cut(found.scores, found.provenance)
    return circuit, replace(bench.fitted(found), count=circuit.n_edges)


def _curve(bench: Workbench, bed: TestBed, circuit: Circuit, ranking: Ranking, pairs: int | None, seed: int) -> Curve:
    scores = circuit.scores
    if ranking != "own":
        scores = replace(scores, ranks_by_magnitude=ranking == "absolute")
    return size_curve(bed, scores, select=bench.select, pairs=pairs, seed=seed)


def _smallest(bench: Workbench, circuit: Circuit, target: float, pairs: int) -> dict[str, Any]:
    bed = validation(bench, pairs)
    if bed is None:
        task = bench.data.splits.name
        raise UserError(f"evaluate.smallest searches on validation pairs, task {task} has none; raise n_val")
    searched = {
        kind: smallest_circuit(bed, circuit.scores, target, raw, select=bench.select)[0].to_dict()
        for kind, raw in (("faithfulness", False), ("faithfulness_raw", True))
    }
    return searched | {"n_pairs": len(bed.full.kl)}
