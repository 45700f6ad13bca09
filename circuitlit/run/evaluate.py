"""Any saved circuit, ours or another tool's, evaluated on any task and model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.ability import measure_behaviour
from circuitlit.cli.build import build_subject, build_workbench, provenance
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import (
    TestBed,
    completeness,
    edge_minimality,
    load_reference,
    node_minimality,
    size_curve,
    smallest_circuit,
)
from circuitlit.evaluate.curves import Curve
from circuitlit.evaluate.ground_truth import against
from circuitlit.graph import Circuit, MaskLayout, load_circuit
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.curve import print_curve
from circuitlit.run.result import held_out, make_result, publish, validation

RANKINGS = ("own", "absolute", "signed")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `circuit` on the test pairs of `task` and write result and page into the run directory.

    Raises:
        UserError: no such circuit, one of another graph, or a setting that cannot be used.
    """
    if not Path(cfg.circuit).exists():
        raise UserError(f"circuit={cfg.circuit} does not exist; name a run's folder or a circuit file")
    if cfg.evaluate.ranking not in RANKINGS:
        raise UserError(f"evaluate.ranking={cfg.evaluate.ranking} is not one of {', '.join(RANKINGS)}; choose one")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        subject = build_subject(cfg)
        found = load_circuit(cfg.circuit, subject.graph)
        reference = load_reference(cfg.evaluate.reference, subject.graph) if cfg.evaluate.reference else None
        bench = build_workbench(cfg, subject)
        circuit, bench = _fit(cfg, found, bench)
    with clock.phase("evaluation", f"Evaluating on {len(bench.data.test)} held-out pairs"):
        bed = held_out(cfg, bench)
        result = make_result(cfg, bench, circuit, bed=bed)
    result["behaviour"] = measure_behaviour(cfg, bench).to_dict()
    result |= {"steps": 0, "circuit": {"path": str(cfg.circuit), "provenance": found.provenance}}
    if reference is not None:
        result["ground_truth"] = against(circuit.scores, reference)
    with clock.phase("ablations", "Ablating the circuit and its parts"):
        result |= _ablations(cfg, bed, circuit)
    with clock.phase("curve", "Cutting the scores at other sizes"):
        curve = _curve(cfg, bed, circuit)
        result |= {} if curve is None else {"curve": curve.to_dict()}
        result |= _smallest(cfg, bench, circuit)
    result |= {**clock.times(), "provenance": provenance(cfg, subject)}
    publish(circuit, result)
    if curve is not None:
        print_curve(result["curve"], CONSOLE)
    return result


def _fit(cfg: DictConfig, found: Circuit, bench: Workbench) -> tuple[Circuit, Workbench]:
    """The circuit, cut if its file holds scores alone, and a workbench whose controls are of its size."""
    if cfg.evaluate.ranking == "absolute" and found.scores.kind != "effect":
        raise UserError(
            f"evaluate.ranking=absolute ranks effects by their size, {cfg.circuit} holds scores "
            "without a sign; use evaluate.ranking=own"
        )
    roles, known = found.scores.roles, bench.data.splits.role_names
    if roles and roles != known:
        raise UserError(
            f"{cfg.circuit} has masks for the token roles {', '.join(roles)}, task {cfg.task.name} has "
            f"{', '.join(known)}; evaluate it on a task with its roles"
        )
    circuit = found if found.n_edges else bench.cut(found.scores, found.provenance)
    return circuit, replace(bench, count=circuit.n_edges, layout=MaskLayout(found.graph, roles))


def _ablations(cfg: DictConfig, bed: TestBed, circuit: Circuit) -> dict[str, Any]:
    settings = cfg.evaluate
    pairs, parts = settings.ablation_pairs, settings.parts
    return {
        "completeness": completeness(bed, circuit, settings.knockouts, pairs, cfg.seed).to_dict(),
        "minimality": {
            "nodes": node_minimality(bed, circuit, parts, pairs, cfg.seed).to_dict(),
            "edges": edge_minimality(bed, circuit, parts, pairs, cfg.seed).to_dict(),
        },
    }


def _curve(cfg: DictConfig, bed: TestBed, circuit: Circuit) -> Curve | None:
    settings = cfg.evaluate
    if settings.curve_pairs == 0:
        return None
    scores = circuit.scores
    if settings.ranking != "own":
        scores = replace(scores, ranks_by_magnitude=settings.ranking == "absolute")
    return size_curve(bed, scores, select=cfg.sparsity.select, pairs=settings.curve_pairs, seed=cfg.seed)


def _smallest(cfg: DictConfig, bench: Workbench, circuit: Circuit) -> dict[str, Any]:
    target = cfg.evaluate.smallest
    if target is None:
        return {}
    bed = validation(bench, cfg.evaluate.probe_pairs)
    if bed is None:
        raise UserError(f"evaluate.smallest searches on validation pairs, task {cfg.task.name} has none; raise n_val")
    searched = {
        kind: smallest_circuit(bed, circuit.scores, target, raw, select=cfg.sparsity.select)[0].to_dict()
        for kind, raw in (("faithfulness", False), ("faithfulness_raw", True))
    }
    return {"smallest": searched | {"n_pairs": len(bed.full.kl)}}
