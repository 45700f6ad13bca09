"""A base model and a tuned one: circuits, weights, and answers on held-out pairs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

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
from circuitlit.compare.difference import kept_edges, normalised
from circuitlit.compare.weights import node_changes
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, summarise
from circuitlit.files import write_json
from circuitlit.finetune import HeldOut, behaviour_change
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.graph.select import edge_budget
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.report.comparison import print_comparison, write_comparison
from circuitlit.run.build import Workbench, attribute, build_subject, build_workbench, device_of, provenance
from circuitlit.run.checks import run_dir
from circuitlit.run.clock import CONSOLE, Clock

INTRUDER_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Side:
    """One of the two models, scored.

    Attributes:
        scores: on all training pairs.
        resamples: on resamples of them.
        matched: edges of the smallest circuit that is faithful enough, None where none is.
        faithfulness: of circuits of each size tried, on validation pairs.
    """

    scores: EdgeScores
    resamples: list[EdgeScores]
    matched: int | None
    faithfulness: dict[int, float | None]

    def at(self, count: int) -> Resampled:
        """Its circuits of some size."""
        return Resampled(self.scores, self.resamples, count)


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
    folder, clock = run_dir(), Clock()
    with clock.phase("load", "Loading both models"):
        base = build_subject(cfg) if cfg.base is None else load_side(cfg, cfg.base, "base")
        tuned = load_side(cfg, cfg.tuned, "tuned")
        _same_graph(base, tuned)
    with clock.phase("behaviour", "Testing both on held-out pairs"):
        bench = build_workbench(cfg, base)
        held_out = HeldOut(base.model, bench.data.test, cfg.data.eval_batch_size, base.device)
        behaviour = behaviour_change(held_out.base, held_out.measure(tuned.model))
    sides = {} if sides is None else sides
    for name, subject in (("base", base), ("tuned", tuned)):
        if name in sides:
            continue
        with clock.phase(f"scores_{name}", f"Scoring the {name} model on {settings.resamples} resamples"):
            sides[name] = _score(cfg, bench if subject is base else build_workbench(cfg, subject))
    with clock.phase("weights", "Measuring the weights' change"):
        changes = list(weight_changes(base, tuned))
        moved = node_changes(changes)
        top = settings.intruders
        intruders = module_intruders(base, tuned, top, INTRUDER_THRESHOLDS) if top else {}
    size = _difference(cfg, sides, (bench.count, bench.count), moved)
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
        "at_faithfulness": _difference(cfg, sides, counts, moved) if counts else None,
        "faithfulness": {name: side.faithfulness for name, side in sides.items()},
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


def load_side(cfg: DictConfig, path: str, which: str) -> Subject:
    """The model of a folder: a model, a PEFT adapter, or a finished run (its tuned model, or the model it was of).

    Raises:
        UserError: the folder is none of these.
    """
    folder = Path(path).expanduser()
    common: dict[str, Any] = {
        "dtype": cfg.model.dtype,
        "cache_dir": cfg.paths.cache_dir,
        "trust_remote_code": cfg.model.trust_remote_code,
        "device": device_of(cfg),
    }
    if (folder / "tuned").is_dir():
        return load_side(cfg, str(folder / "tuned"), which)
    if (folder / "adapter_config.json").is_file():
        under = _read(folder / "adapter_config.json").get("base_model_name_or_path")
        source = "local" if under and Path(under).is_dir() else "hub"
        return load_subject(which, source, under, adapter=str(folder), **common)
    if (folder / "config.json").is_file():
        return load_subject(which, "local", str(folder), **common)
    if (folder / "circuit.json").is_file():
        model = _read(folder / "circuit.json").get("provenance", {}).get("model", {})
        source = str(model.get("source", "")).split(" ")[0]
        if source in ("hub", "local", "package"):
            facts = {name: model.get(name) for name in ("path", "revision", "adapter")}
            return load_subject(which, source, **facts, **common)  # type: ignore[arg-type]
    raise UserError(
        f"{which}={path} is neither a model folder (config.json), nor an adapter folder (adapter_config.json), nor a "
        "finished run (tuned/ or circuit.json); name one"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); name another folder") from error


def _same_graph(base: Subject, tuned: Subject) -> None:
    one, other = base.graph, tuned.graph
    if one != other:
        shapes = [f"{g.n_layers} layers x {g.n_heads} heads ({g.n_edges:,} edges)" for g in (one, other)]
        raise UserError(f"base has {shapes[0]}, tuned {shapes[1]}; only models of one graph can be compared")


def _score(cfg: DictConfig, bench: Workbench) -> Side:
    """Scores on all training pairs and on resamples; the same resamples for every model of the run."""
    count = len(bench.data.train)
    generator = torch.Generator().manual_seed(cfg.compare.seed)
    rows = [torch.randint(count, (count,), generator=generator).tolist() for _ in range(cfg.compare.resamples)]
    scores = attribute(cfg, bench)
    resamples = [attribute(cfg, bench, picked) for picked in rows]
    matched, faithfulness = _smallest(cfg, bench, scores)
    return Side(scores, resamples, matched, faithfulness)


def _smallest(cfg: DictConfig, bench: Workbench, scores: EdgeScores) -> tuple[int | None, dict[int, float | None]]:
    """Edges of the smallest circuit tried that is as faithful as asked for, and what each size reaches."""
    pairs = bench.data.val if len(bench.data.val) else bench.data.train
    order = range(min(cfg.compare.probe_pairs, len(pairs)))
    bed = TestBed.build(bench.model, bench.fresh_references(), pairs.batches(cfg.data.eval_batch_size, order=order))
    reached: dict[int, float | None] = {}
    for share in sorted(cfg.compare.sizes):
        total = bench.layout.n_edge_masks
        count = total if share >= 1 else edge_budget(1 - share, total)
        outcome = bed.run(Circuit.cut(scores, count).kept)
        value = reached[count] = summarise([outcome], bed.full, bed.corrupted).faithfulness.value
        if value is not None and value >= cfg.compare.faithfulness:
            return count, reached
    return None, reached


def _difference(
    cfg: DictConfig, sides: dict[str, Side], counts: tuple[int, int], moved: dict[str, float]
) -> dict[str, Any]:
    """Edges and nodes of two circuits; the edges of either circuit one by one, for the page."""
    base, tuned = sides["base"].at(counts[0]), sides["tuned"].at(counts[1])
    difference = circuit_difference(base, tuned, math.log(cfg.compare.delta))
    modes = node_modes(base, tuned, difference, moved)
    return {
        "n_edges": {"base": counts[0], "tuned": counts[1]},
        **difference.to_dict(),
        "nodes": {mode: [n for n, m in modes.items() if m == mode] for mode in sorted({*modes.values()} - {"absent"})},
        "points": _points(base, tuned, difference),
    }


def _points(base: Resampled, tuned: Resampled, difference: CircuitDifference, most: int = 3000) -> list[dict[str, Any]]:
    """The edges of either circuit, largest share of all scores first: name, both shares, label."""
    shares = torch.stack([normalised(side.scores) for side in (base, tuned)])
    kept = kept_edges(base.scores, base.count) | kept_edges(tuned.scores, tuned.count)
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
