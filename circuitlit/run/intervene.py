"""Ablation, transfer and enhancement of nodes, beside matched random ones, on the task, other tasks and other text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import attribute, build_workbench, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import component_kinds, load_base, load_side, passages, task_settings
from circuitlit.compare.effects import (
    PairBed,
    as_dict,
    changed_logits,
    gain_share,
    plain_logits,
    ranked_nodes,
    scaled,
    text_kl,
)
from circuitlit.compare.transplant import Transplant
from circuitlit.compare.writes import Writers
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import LEAST_DRAWS, monotonicity, rank_p, slope, until_clear, with_holm
from circuitlit.files import write_json
from circuitlit.graph import INPUTS, load_circuit
from circuitlit.graph.nodes import known_nodes
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.interventions import print_interventions, write_interventions
from circuitlit.run.ablate import Stage, ablation


def run(cfg: DictConfig) -> dict[str, Any]:
    """Intervene and write `intervene.json` and a page into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check(cfg)
    others = task_settings(cfg.intervene.other_tasks, "intervene.other_tasks")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", "Loading the model and the pairs"):
        subject = load_base(cfg)
        writers = Writers(subject)
        tuned = None if cfg.tuned is None else load_side(cfg, cfg.tuned, "tuned")
        move = None if tuned is None else Transplant(subject, tuned)
        bench = build_workbench(cfg, subject)
        kinds = component_kinds(cfg.heads, subject.graph)
    with clock.phase("scores", "Ranking the nodes"):
        stage = _stage(cfg, bench, kinds, writers)
        for name, other in others.items():
            stage.others[name] = _bed(other, build_workbench(other, subject), cfg.intervene.pairs)
    with clock.phase("ablation", f"Ablating {' '.join(stage.chosen)} and random nodes like them"):
        ablated = ablation(stage)
    with clock.phase("enhancement", f"Scaling them by {len(cfg.intervene.doses)} doses"):
        enhancement = _enhancement(stage)
    result = {
        "task": cfg.task.name,
        "model": subject.name,
        "method": stage.circuit.scores.method,
        "ablated_by": cfg.ablation.kind,
        "seed": cfg.seed,
        "n_pairs": len(stage.bed.full.kl),
        "chosen": stage.chosen,
        "settings": plain(cfg.intervene),
        "text": cfg.text or "sampled from the model",
        "full_metric": as_dict(mean_estimate(stage.bed.full.metric, stage.bed.full.group)),
        "ablation": ablated,
        "enhancement": enhancement,
        "transfer": None,
    }
    if move is not None:
        with clock.phase("transfer", "Transferring them from the tuned model"):
            result["transfer"] = _transfer(stage, move)
    result = with_holm(result) | {**clock.times(), "provenance": provenance(cfg, subject)}
    write_json(run_dir() / "intervene.json", result)
    page = write_interventions(run_dir())
    print_interventions(result, CONSOLE)
    for path in (run_dir() / "intervene.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _check(cfg: DictConfig) -> None:
    settings = cfg.intervene
    if settings.draws is not None and settings.draws < LEAST_DRAWS:
        raise UserError(f"intervene.draws={settings.draws} is too few random sets; take at least {LEAST_DRAWS}")
    if settings.size < 1 or settings.edges < 1 or settings.pairs < 2 or settings.control_pairs < 2:
        raise UserError("intervene.size and .edges must be at least 1, intervene.pairs and .control_pairs at least 2")
    if not {0.0, 1.0} <= {float(dose) for dose in settings.doses}:
        raise UserError("intervene.doses must hold 0 (zero ablation) and 1 (nothing changed)")
    if cfg.text is not None and not Path(cfg.text).is_file():
        raise UserError(f"text={cfg.text} does not exist; give a file of passages, or leave it out to sample them")


def _bed(cfg: DictConfig, bench: Workbench, pairs: int) -> TestBed:
    test = bench.data.test
    order = test.spread(pairs)
    return TestBed.build(bench.model, bench.fresh_references(), test.batches(cfg.data.eval_batch_size, order=order))


def _stage(cfg: DictConfig, bench: Workbench, kinds: dict[str, str], writers: Writers) -> Stage:
    settings, graph = cfg.intervene, bench.subject.graph
    found = load_circuit(cfg.circuit, graph) if cfg.circuit else None
    circuit = found if found and found.n_edges else bench.cut(found.scores if found else attribute(cfg, bench))
    if settings.nodes is None:
        chosen = ranked_nodes(circuit)[: settings.size]
    else:
        chosen = known_nodes(graph, [str(node) for node in settings.nodes])
        if not chosen or {*chosen} & {*INPUTS}:
            raise UserError("intervene.nodes must name heads and MLPs, at least one; an input has no random control")
    text = passages(cfg, bench.subject, settings.passages.count, settings.passages.length)
    bed = _bed(cfg, bench, settings.pairs)
    if not bool(bed.full.metric.isfinite().all()):
        raise UserError(f"task {cfg.task.name} has pairs without wrong answers, so there is no metric to change")
    return Stage(cfg, bench, bed, circuit, chosen, kinds, text, writers)


def _enhancement(stage: Stage) -> dict[str, Any]:
    """Dose and response of the chosen nodes and of random sets."""
    doses = sorted(float(dose) for dose in stage.cfg.intervene.doses)
    writers, pairs = stage.writers, stage.cfg.intervene.control_pairs
    bed = PairBed(stage.subject, stage.bed.batches)
    small = PairBed(stage.subject, _first(stage.bed.batches, pairs))
    rows = []
    for dose in doses:
        outcome = bed.measure(scaled(writers, stage.chosen, dose))
        kl = text_kl(stage.subject, stage.text, lambda dose=dose: _dosed(stage, stage.chosen, dose))
        rows.append(
            {
                "dose": dose,
                "metric": as_dict(mean_estimate(outcome.metric, outcome.group)),
                "change": as_dict(mean_estimate(outcome.metric - bed.full.metric, outcome.group)),
                "kl": float(outcome.kl.mean()),
                "collateral_kl": as_dict(mean_estimate(kl, None)),
            }
        )
    responses = [row["change"]["value"] for row in rows]
    own = slope(doses, responses)

    def dosed(members: Sequence[str]) -> list[float]:
        outcomes = (small.measure(scaled(writers, members, dose)) for dose in doses)
        return [float((outcome.metric - small.full.metric).mean()) for outcome in outcomes]

    random = until_clear([abs(own)], map(dosed, stage.sets()), lambda values: [abs(slope(doses, values))])
    slopes = [slope(doses, values) for values in random]
    return {
        "nodes": stage.chosen,
        "doses": rows,
        "slope": own,
        "monotonicity": monotonicity(doses, responses),
        "best_dose": max(rows, key=lambda row: row["metric"]["value"])["dose"],
        "random_changes": random,
        "random_slope": as_dict(mean_of(slopes)),
        "random_monotonicity": as_dict(mean_of([monotonicity(doses, v) for v in random])),
        "rank_p": rank_p(abs(own), [abs(value) for value in slopes]),
    }


def _dosed(stage: Stage, nodes: Sequence[str], dose: float) -> Tensor:
    return changed_logits(stage.writers, stage.text, nodes, lambda _node, own: own * dose)


def _first(batches: list[Any], pairs: int) -> list[Any]:
    """As many of the batches as hold the first pairs."""
    taken, seen = [], 0
    for batch in batches:
        if seen >= pairs:
            break
        taken.append(batch)
        seen += len(batch)
    return taken


def _transfer(stage: Stage, move: Transplant) -> dict[str, Any]:
    """The chosen nodes from tuned to base, what they write and their weights, beside random sets."""
    bed = PairBed(stage.subject, stage.bed.batches)
    tuned = bed.measure(lambda batch: plain_logits(move.donor, batch))
    gap = mean_estimate(tuned.metric - bed.full.metric, tuned.group)

    def written(nodes: Sequence[str]) -> tuple[Outcome, Tensor]:
        outcome = bed.measure(lambda batch: move.logits(nodes, batch.clean, batch.positions))
        return outcome, text_kl(stage.subject, stage.text, lambda: move.logits(nodes, stage.text, None))

    def weighed(nodes: Sequence[str]) -> tuple[Outcome, Tensor]:
        with move.weights(nodes) as copy:
            outcome = bed.measure(lambda batch: plain_logits(copy, batch))
            return outcome, text_kl(stage.subject, stage.text, lambda: copy.unembed(copy.hidden(stage.text)))

    found: dict[str, Any] = {
        "tuned": {"name": move.donor.name, **move.donor.provenance},
        "metric_gap": as_dict(gap),
        "gap_is_clear": gap.bounds is not None and gap.bounds[0] * gap.bounds[1] > 0,
        "withheld": withheld(stage.subject.graph, stage.chosen),
    }
    for name, way in (("activations", written), ("weights", weighed)):
        outcome, text = way(stage.chosen)
        own = gain_share(bed.full, tuned, outcome)
        others = until_clear(
            [own.value], map(way, stage.sets()), lambda one: [gain_share(bed.full, tuned, one[0]).value]
        )
        shares = [gain_share(bed.full, tuned, other).value for other, _ in others]
        known = [share for share in shares if share is not None]
        found[name] = {
            "gain_share": as_dict(own),
            "random_gain_share": as_dict(mean_of(known)) if known else None,
            "rank_p": rank_p(own.value, known) if own.value is not None else None,
            "collateral_kl": as_dict(mean_estimate(text, None)),
            "random_collateral_kl": as_dict(mean_estimate(torch.stack([kl.mean() for _, kl in others]), None)),
        }
    return found
