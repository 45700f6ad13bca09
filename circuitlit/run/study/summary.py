"""From the cells of a study to `study.json`: means over pairs and seeds, overlaps, paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from omegaconf import DictConfig

from circuitlit.evaluate import Estimate, consensus, summarise
from circuitlit.evaluate.fewest import fewest_edges
from circuitlit.evaluate.similarity import Spread
from circuitlit.evaluate.statistics import INTERVALS, mean_estimate
from circuitlit.graph import Circuit
from circuitlit.objective import Outcome
from circuitlit.run.study.cells import Cell

_AREAS = ("cpr", "cmd", "cpr_anchored", "cmd_anchored")
Finished = list[tuple[Cell, dict[str, Any]]]


def summarise_study(cells: Finished, cfg: DictConfig) -> dict[str, Any]:
    """All that the table, the figures and a reader want of a study.

    Args:
        cells: every cell with its content, failed ones too.
        cfg: the study's settings.
    """
    share = cfg.study.consensus
    done = [(cell, content) for cell, content in cells if content["status"] == "OK"]
    failed = [{"cell": cell.name, "error": content["error"]} for cell, content in cells if content["status"] != "OK"]
    tasks = {cell.task: content for cell, content in done if cell.kind == "task"}
    rows = [
        _row(cell, sparsity, group, tasks[cell.task], share)
        for (cell, sparsity), group in _grouped(done).items()
        if cell.task in tasks
    ]
    paired = _paired(done)
    return {
        "status": "FAILED" if failed else "OK",
        "tasks": [_ends(name, content) for name, content in tasks.items()],
        "rows": rows,
        "learned_minus_attribution_kl": paired,
        "wins": _wins(paired),
        "fewest_edges": [] if cfg.study.match is None else _fewest(done, cfg.study.match, cfg.study.curve_pairs),
        "failed": failed,
    }


def _grouped(done: Finished) -> dict[tuple[Cell, float], list[tuple[Cell, dict[str, Any], dict[str, Any]]]]:
    """The rows of all seeds of one method, task and sparsity, in the order of the cells."""
    groups = defaultdict(list)
    for cell, content in done:
        for row in content.get("rows", []):
            groups[Cell(cell.task, cell.kind, cell.method), row["sparsity"]].append((cell, content, row))
    return groups


def _ends(name: str, content: dict[str, Any]) -> dict[str, Any]:
    full, corrupted = _outcome(content["full"]), _outcome(content["corrupted"])
    facts = {key: content[key] for key in ("n_pairs", "n_train", "n_edges_total")}
    ends = {"full": full, "corrupted": corrupted}
    return {"task": name, **facts, **{k: summarise([o], full, corrupted).to_dict() for k, o in ends.items()}}


def _row(cell: Cell, sparsity: float, group: list, task: dict[str, Any], share: float) -> dict[str, Any]:
    """One line of the table; with several circuits, intervals resample circuits and pairs."""
    outcomes = [_outcome(row["by_pair"]) for _, _, row in group]
    full, corrupted = _outcome(task["full"]), _outcome(task["corrupted"])
    first = group[0][2]
    reachable = [row["n_edges_reachable"] for _, _, row in group if "n_edges_reachable" in row]
    curves = [content["curve"] for _, content, _ in group if content.get("curve")]
    return {
        "task": cell.task,
        "method": cell.method,
        "kind": cell.kind,
        "sparsity": sparsity,
        "n_edges": first["n_edges"],
        "n_edges_reachable": sum(reachable) / len(reachable) if reachable else None,
        "n_circuits": len(group),
        "n_pairs": len(outcomes[0].kl),
        "ranking": first.get("ranking"),
        "seconds": sum(content["seconds"] for _, content, _ in group) / len(group),
        **summarise(outcomes, full, corrupted).to_dict(),
        **{name: _envelope([curve[name] for curve in curves]) for name in _AREAS if curves},
        **({"noise": first["noise"]} if "noise" in first else {}),
        **(_overlap([cell for cell, _, _ in group], first, share) if cell.kind == "learner" and len(group) > 1 else {}),
    }


def _overlap(cells: list[Cell], row: dict[str, Any], share: float) -> dict[str, Any]:
    """How alike the circuits of several seeds are."""
    circuits = [Circuit.load(cell.folder) for cell in cells]
    circuits = [
        own if own.n_edges == row["n_edges"] else Circuit.cut(own.scores, row["n_edges"], select=row["select"])
        for own in circuits
    ]
    common, every = consensus(circuits, share), consensus(circuits, 1.0)
    facts = {"share": share, "n_edges": common.n_edges, "n_edges_reachable": common.n_reachable}
    spread = Spread.of([circuit.kept for circuit in circuits])
    return {"seeds_overlap": spread.to_dict(), "consensus": {**facts, "n_edges_in_all": every.n_edges}}


def _envelope(estimates: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean of the seeds' values, and an interval that holds all of theirs."""
    known = [e for e in estimates if None not in e.values()]
    if not known:
        return Estimate().to_dict()
    value = sum(e["value"] for e in known) / len(known)  # type: ignore[misc]
    lows, highs = ("low", "low_sentences"), ("high", "high_sentences")
    ends = {name: min(e[name] for e in known) for name in lows} | {name: max(e[name] for e in known) for name in highs}  # type: ignore[type-var]
    return {"value": value, **ends}


def _paired(done: Finished) -> list[dict[str, Any]]:
    """KL of each learner minus KL of the best attribution, pair by pair, by task and sparsity.

    The attribution is chosen on validation pairs, and a learner's KL is the mean over its seeds.
    """
    groups = _grouped(done)
    found = []
    for task, sparsity in dict.fromkeys((cell.task, sparsity) for cell, sparsity in groups):
        here = {cell: group for (cell, at), group in groups.items() if (cell.task, at) == (task, sparsity)}
        rivals = {cell: group[0][2] for cell, group in here.items() if cell.kind == "attribution"}
        learners = {cell: group for cell, group in here.items() if cell.kind == "learner"}
        for (learner, group), best in product(learners.items(), _best(rivals)):
            ours = torch.stack([_outcome(row["by_pair"]).kl for _, _, row in group])
            rival = _outcome(rivals[best]["by_pair"])
            difference = mean_estimate(ours - rival.kl, rival.group)
            names = {"task": task, "sparsity": sparsity, "learner": learner.method, "attribution": best.method}
            found.append({**names, "n_seeds": len(group), **asdict(difference)})
    return found


def _wins(paired: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On how many tasks a learner's KL is clearly below, and clearly above, that of the best attribution."""
    found: dict[tuple[str, float], dict[str, list[str]]] = {}
    for item in paired:
        sides = found.setdefault((item["learner"], item["sparsity"]), {"won": [], "lost": [], "open": []})
        low, high = Estimate(**{name: item[name] for name in INTERVALS}).bounds or (-math.inf, math.inf)
        side = "won" if high < 0 else "lost" if low > 0 else "open"
        sides[side].append(item["task"])
    return [{"learner": learner, "sparsity": sparsity, **sides} for (learner, sparsity), sides in found.items()]


def _fewest(done: Finished, rival: DictConfig, pairs: int) -> list[dict[str, Any]]:
    """The edges that each method needs for the KL of one attribution at one sparsity, on the same test pairs.

    A learner is taken at the sparsity from which it needs fewest edges on validation pairs, mean over its seeds; where
    the task has none, at the first one.
    """
    found = []
    targets = {}
    for cell, content in done:
        if (cell.kind, cell.method) == ("attribution", rival.method):
            rows = content["rows"]
            row = next((row for row in rows if row["sparsity"] == rival.get("sparsity")), rows[0])
            kls = row["by_pair"]["kl"][:pairs]
            targets[cell.task] = row["n_edges"], sum(kls) / len(kls), row["val_kl"]
    methods: dict[tuple[str, str], dict[float | None, list[tuple[float | None, float | None]]]] = {}
    for cell, content in done:
        if content.get("kl_by_size") and cell.task in targets:
            _, kl, val = targets[cell.task]
            on_val = None if val is None else fewest_edges(content["val_kl_by_size"], val)
            needed = on_val, fewest_edges(content["kl_by_size"], kl)
            methods.setdefault((cell.task, cell.method), {}).setdefault(cell.sparsity, []).append(needed)
    for (task, method), by_sparsity in methods.items():
        edges, kl, _ = targets[task]
        chosen_by, reported = ({at: _mean(r[i] for r in runs) for at, runs in by_sparsity.items()} for i in (0, 1))
        best = min(chosen_by, key=lambda at: chosen_by[at] or math.inf)
        least = reported[best]
        facts = {"task": task, "method": method, "kl": kl, "rival": rival.method, "rival_edges": edges}
        found.append({**facts, "n_edges": least, "times_fewer": edges / least if least else None, "trained_at": best})
    return found


def _mean(edges: Iterable[float | None]) -> float | None:
    """Mean over seeds; None where one of them never reaches the target."""
    known = list(edges)
    return None if None in known else sum(known) / len(known)  # type: ignore[arg-type]


def _best(rivals: dict[Cell, dict[str, Any]]) -> list[Cell]:
    """The attribution of least KL on validation pairs; without those all, for none can be chosen fairly."""
    judged = {cell: row["val_kl"] for cell, row in rivals.items() if row["val_kl"] is not None}
    return [min(judged, key=lambda cell: judged[cell])] if judged else list(rivals)


def _outcome(lists: dict[str, list[float | None]]) -> Outcome:
    """An outcome from a cell's file, in which NaN is null."""
    return Outcome(**{k: torch.tensor([math.nan if v is None else v for v in row]) for k, row in lists.items()})
