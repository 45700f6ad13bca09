"""From finished cells to one entry a series: rows over steps, likeness, stages, when things emerge."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from circuitlit.graph import Circuit
from circuitlit.run.checks import run_dir
from circuitlit.run.evolve.cells import CAUSAL, HEADS, cell_name
from circuitlit.timeline.series import Noise, Point, emerged, follow, handovers, stages_of

Finished = dict[str, dict[str, list[dict[str, Any]]]]
LEAST = 0.1  # gain of accuracy or head score that counts as emergence


def summarise_series(
    name: str, rows: dict[str, list[dict[str, Any]]], tasks: list[str], threshold: float
) -> dict[str, Any]:
    """Everything about one series, plain types only."""
    heads = [row for row in rows[HEADS] if row["status"] == "OK"]
    return {
        "name": name,
        "n_parameters": heads[-1]["n_parameters"] if heads else None,
        "tasks": {task: _task(task, rows[task]) for task in tasks},
        "heads": _heads(heads, threshold),
        "causal": rows[CAUSAL][-1] if rows[CAUSAL] else None,
    }


def _task(task: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    done = [cell for cell in cells if cell["status"] != "ERROR"]
    points = [_point(cell) for cell in done]
    likeness = follow(points) if points else []
    noise = Noise(**next((cell["noise"] for cell in done if "noise" in cell), {}))
    left_out = ("series", "task", "settings", "path", "revision", "adapter")
    rows = [
        {key: value for key, value in cell.items() if key not in left_out} | {"likeness": alike}
        for cell, alike in zip(done, likeness, strict=True)
    ]
    sizes = [cell["smallest"]["n_edges"] for cell in done if cell["status"] == "OK"]
    return {
        "rows": rows,
        "noise": asdict(noise),
        "stages": stages_of(points, likeness, noise).to_dict(),
        "emerged": _emergence(done, [cell["behaviour"]["accuracy"] for cell in done]),
        "mean_size": sum(sizes) / len(sizes) if sizes else None,
    }


def _point(cell: dict[str, Any]) -> Point:
    folder = run_dir() / "circuits" / cell_name(cell["series"], cell["task"], cell["step"])
    smallest = Circuit.load(folder / "smallest") if cell["status"] == "OK" else None
    metric = cell["behaviour"]["metric"]["value"]
    level = cell["behaviour"]["accuracy"]["value"] if metric is None else metric
    return Point(cell["step"], level, Circuit.load(folder), smallest)


def _emergence(rows: list[dict[str, Any]], estimates: list[dict[str, float | None]]) -> dict[str, Any] | None:
    """Step and tokens at which something stays above half of its gain."""
    steps = [row["step"] for row in rows]
    step = emerged(steps, [e["value"] for e in estimates], [e["low"] for e in estimates], LEAST)
    if step is None:
        return None
    return {"step": step, "tokens": rows[steps.index(step)]["tokens"]}


def _heads(rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    if not rows:
        return {"rows": [], "emerged": {}, "handovers": {}}
    best = [{role: max(scores.values()) for role, scores in row["scores"].items()} for row in rows]
    steps = [row["step"] for row in rows]
    return {
        "rows": [
            {key: row[key] for key in ("step", "tokens", "scores", "loss", "accuracy")} | {"best": top}
            for row, top in zip(rows, best, strict=True)
        ],
        "emerged": {
            role: _emergence(rows, [{"value": top[role], "low": top[role]} for top in best]) for role in best[0]
        },
        "handovers": {role: handovers(steps, [row["scores"][role] for row in rows], threshold) for role in best[0]},
    }
