"""A base model and a tuned one: circuits, weights, and answers on held-out pairs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import build_workbench, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.scored import Side, score_side
from circuitlit.cli.sides import load_both
from circuitlit.compare import (
    LABELS,
    CircuitDifference,
    PartChange,
    Resampled,
    circuit_difference,
    distribution,
    module_intruders,
    node_modes,
    weight_changes,
)
from circuitlit.compare.reuse import Reuse, reuse
from circuitlit.compare.turnover import Circuits, turnover
from circuitlit.compare.weights import node_changes
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import draws_for
from circuitlit.evaluate.testing import with_holm
from circuitlit.files import write_json
from circuitlit.finetune import HeldOut, behaviour_change
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.comparison import print_comparison, write_comparison
from circuitlit.run.tunings import run_tunings

INTRUDER_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8)


def run(cfg: DictConfig, sides: dict[str, Side] | None = None) -> dict[str, Any]:
    """Compare and write everything into the run directory.

    Args:
        cfg: the verb's settings.
        sides: scores that are known already, as "base" or "tuned"; those that are made are added.

    Raises:
        UserError: a setting, file or model that cannot be used, or two models of different graphs.
    """
    settings = cfg.compare
    if settings.resamples < 10 or not settings.delta > 1:
        raise UserError("compare.resamples must be at least 10 and compare.delta a factor above 1")
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    if cfg.runs is not None:
        return run_tunings(cfg)
    if cfg.tuned is None:
        raise UserError("tuned has no value; name a tuned model or run, or several runs: runs=[A,B]")
    folder, clock = run_dir(), Clock()
    with clock.phase("load", "Loading both models"):
        base, tuned = load_both(cfg)
    with clock.phase("behaviour", "Testing both on held-out pairs"):
        bench = build_workbench(cfg, base)
        held_out = HeldOut(base.model, bench.data.test, cfg.data.eval_batch_size, base.device)
        behaviour = behaviour_change(held_out.base, held_out.measure(tuned.model))
    sides = {} if sides is None else sides
    _score(cfg, bench, tuned, sides, clock)
    with clock.phase("weights", "Measuring the weights' change"):
        changes = list(weight_changes(base, tuned))
        moved = node_changes(changes)
        top = settings.intruders
        intruders = module_intruders(base, tuned, top, INTRUDER_THRESHOLDS) if top else {}
    found = None
    if settings.reuse.pairs and base.graph.inputs == 1:
        with clock.phase("reuse", "Comparing and swapping nodes"):
            found = _reuse(cfg, bench, sides, base, tuned)
    size = _difference(cfg, sides, (bench.count, bench.count), moved, found)
    matched = (sides["base"].matched, sides["tuned"].matched)
    counts = None if matched[0] is None or matched[1] is None else (matched[0], matched[1])
    result = {
        "task": cfg.task.name,
        "method": cfg.method.name,
        "ablation": cfg.ablation.kind,
        "seed": cfg.seed,
        "base": {"name": base.name, **base.provenance},
        "tuned": {"name": tuned.name, **tuned.provenance},
        "n_edges_total": base.graph.n_edges,
        "resamples": settings.resamples,
        "delta": settings.delta,
        "at_size": size,
        "at_faithfulness": _difference(cfg, sides, counts, moved, found) if counts else None,
        "faithfulness": {name: side.faithfulness for name, side in sides.items()},
        "turnover": with_holm(_turnover(cfg, sides, bench.count)),
        "reuse": found.to_dict() if found else None,
        "held_out": behaviour.to_dict(),
        "weights": _weights(changes, intruders, settings.intruders),
        **clock.times(),
        "provenance": provenance(cfg, base),
    }
    write_json(folder / "compare.json", result)
    page = write_comparison(folder)
    print_comparison(result, CONSOLE)
    for path in (folder / "compare.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _score(cfg: DictConfig, bench: Workbench, tuned: Subject, sides: dict[str, Side], clock: Clock) -> None:
    """Add the scores of the models that are not in `sides` yet; `bench` is the base model's."""
    for name, subject in (("base", bench.subject), ("tuned", tuned)):
        if name not in sides:
            with clock.phase(f"scores_{name}", f"Scoring the {name} model on {cfg.compare.resamples} resamples"):
                sides[name] = score_side(cfg, bench if name == "base" else build_workbench(cfg, subject))


def _reuse(cfg: DictConfig, bench: Workbench, sides: dict[str, Side], base: Subject, tuned: Subject) -> Reuse:
    """Likeness of all nodes on test pairs, and swaps of those that carry most of either circuit."""
    settings, graph = cfg.compare.reuse, base.graph
    shares = sum(side.at(bench.count).circuit.shares for side in sides.values())
    by_writer = torch.zeros(graph.n_writers, dtype=torch.float64)
    carried = by_writer.index_add_(0, graph.writer_of, torch.as_tensor(shares))[graph.inputs :]
    order = carried.argsort(descending=True, stable=True).tolist()
    nodes = [graph.nodes[place] for place in order if float(carried[place]) > 0]
    rows = bench.data.test.spread(settings.pairs)
    batches = list(bench.data.test.batches(cfg.data.eval_batch_size, order=rows))
    return reuse(base, tuned, batches, nodes[: settings.nodes], settings.margin)


def _turnover(cfg: DictConfig, sides: dict[str, Side], count: int) -> dict[str, Any]:
    settings = cfg.compare
    draws = settings.draws or draws_for(1)
    base, tuned = (Circuits.of(sides[name].at(count), draws, seed) for seed, name in enumerate(("base", "tuned")))
    return asdict(turnover(base, tuned, settings.seed))


def _difference(
    cfg: DictConfig,
    sides: dict[str, Side],
    counts: tuple[int, int],
    moved: dict[str, float],
    reused: Reuse | None,
) -> dict[str, Any]:
    """Edges and nodes of two circuits; the edges of either circuit one by one, for the page."""
    base, tuned = sides["base"].at(counts[0]), sides["tuned"].at(counts[1])
    swaps = reused.swaps if reused else {}
    fits_back = {name: swap.fits_back for name, swap in swaps.items()}
    replaces = {name: swap.replaces for name, swap in swaps.items()}
    difference = circuit_difference(base, tuned, math.log(cfg.compare.delta), fits_back=fits_back)
    modes = node_modes(base, tuned, difference, moved, fits_back, replaces)
    return {
        "n_edges": {"base": counts[0], "tuned": counts[1]},
        **difference.to_dict(),
        "nodes": {mode: [n for n, m in modes.items() if m == mode] for mode in sorted({*modes.values()} - {"absent"})},
        "points": _points(base, tuned, difference),
    }


def _points(base: Resampled, tuned: Resampled, difference: CircuitDifference, most: int = 3000) -> list[dict[str, Any]]:
    """The edges of either circuit, largest share of its weight first: name, both shares (0 outside), label."""
    shares = torch.stack([base.circuit.shares, tuned.circuit.shares])
    kept = base.kept | tuned.kept
    chosen = kept.nonzero()[:, 0]
    ranked = chosen[shares[:, chosen].max(0).values.argsort(descending=True)][:most].tolist()
    return [
        {
            "edge": difference.graph.edge_name(edge),
            "base": float(shares[0, edge]),
            "tuned": float(shares[1, edge]),
            "label": LABELS[int(difference.labels[edge])],
        }
        for edge in ranked
    ]


def _weights(changes: list[PartChange], intruders: dict[str, list[int]], top: int) -> dict[str, Any]:
    total = sum(part.change.norm**2 for part in changes) ** 0.5
    base = sum(part.change.base_norm**2 for part in changes) ** 0.5
    count = sum(part.numel for part in changes)
    return {
        "norm": total,
        "relative": total / base if base else None,
        "unchanged": sum(part.change.unchanged * part.numel for part in changes) / count,
        "still": sum(part.change.still * part.numel for part in changes) / count,
        "distribution": distribution(changes),
        "intruders": {"top": top, "thresholds": list(INTRUDER_THRESHOLDS), "modules": intruders},
        "parts": [part.to_dict() for part in changes],
    }
