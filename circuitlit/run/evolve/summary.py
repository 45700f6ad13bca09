"""From finished cells to one entry a series: rows over steps, likeness, stages, when things emerge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from circuitlit.cli.checks import run_dir
from circuitlit.graph import Circuit
from circuitlit.run.evolve.cells import CAUSAL, HEADS, cell_name
from circuitlit.timeline.emergence import emergence
from circuitlit.timeline.handovers import handovers
from circuitlit.timeline.series import Noise, Point, follow, shared_by_neighbours, stages_of

Finished = dict[str, dict[str, list[dict[str, Any]]]]


def summarise_series(
    name: str, rows: dict[str, list[dict[str, Any]]], tasks: list[str], threshold: float, draws: int
) -> dict[str, Any]:
    """Everything about one series, plain types only; `draws` random circuits stand beside what neighbours share."""
    heads = [row for row in rows[HEADS] if row["status"] == "OK"]
    return {
        "name": name,
        "n_parameters": heads[-1]["n_parameters"] if heads else None,
        "tasks": {
            task: _task(rows[task], draws)
            | {"roles": _roles(rows[task], heads, threshold), "algorithm_roles": _algorithm_roles(rows[task])}
            for task in tasks
        },
        "heads": _heads(heads, threshold),
        "causal": _causal(rows[CAUSAL][-1], heads[0]) if rows[CAUSAL] and heads else None,
    }


def _causal(cell: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The last checkpoint's ablations, as shares of what was gained since the first; 1 removes the gain."""
    if cell["status"] != "OK":
        return cell
    found = dict(cell)
    for name in ("loss", "accuracy"):
        check = cell[name]
        gain = check["intact"]["value"] - first[name]
        changes = {"share": "effect", "random_share": "random", "bystander_share": "bystanders"}
        shares = {key: _share(check[of], gain) for key, of in changes.items()}
        found[name] = {**check, "gain": gain, **shares}
    return found


def _share(change: dict[str, float | None] | None, gain: float) -> float | None:
    value = None if change is None else change["value"]
    return None if gain == 0 or value is None else -value / gain


def _task(cells: list[dict[str, Any]], draws: int) -> dict[str, Any]:
    done = [cell for cell in cells if cell["status"] != "ERROR"]
    points = [_point(cell) for cell in done]
    likeness = follow(points) if points else []
    noise = Noise(**next((cell["noise"] for cell in done if "noise" in cell), {}))
    left_out = ("series", "task", "settings", "path", "revision", "adapter")
    rows = [
        {key: value for key, value in cell.items() if key not in left_out} | {"likeness": alike}
        for cell, alike in zip(done, likeness, strict=True)
    ]
    begun = when_emerged(done, [cell["behaviour"]["accuracy"] for cell in done])
    return {
        "rows": rows,
        "noise": asdict(noise),
        "stages": stages_of(points, likeness, noise).to_dict(),
        "emerged": begun,
        "learned": _learned(rows, points, begun, draws),
    }


def _learned(
    rows: list[dict[str, Any]], points: list[Point], begun: dict[str, Any] | None, draws: int
) -> dict[str, Any]:
    """Means over the checkpoints from emergence on: size of the smallest circuit, what neighbours share.

    `stability` is J* of the nodes of circuits of equal size with the checkpoint before: 1 the same nodes, 0 as
    unrelated circuits; None where those have the same nodes, too. `shared` tests it, for nodes and edges.
    """
    late = [row for row in rows if begun and begun["at"] is not None and row["step"] >= begun["step"]]
    shared = shared_by_neighbours([point for point in points if late and point.step >= late[0]["step"]], draws)
    faithful = [row["smallest"] for row in late if row["status"] == "OK"]
    return {
        "nodes": _mean([found["n_nodes"] for found in faithful]),
        "edges": _mean([found["n_edges"] for found in faithful]),
        "stability": shared.nodes.corrected if shared and shared.nodes.strictest.expected < 1 else None,
        "shared": shared.to_dict() if shared else None,
    }


def _roles(cells: list[dict[str, Any]], heads: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """By role: the heads of the smallest faithful circuit that have it, over steps, and who got it while one lost it.

    A head outside the circuit has no role in it, whatever its score.
    """
    scores = {row["step"]: row["scores"] for row in heads}
    known = [cell for cell in cells if cell["status"] == "OK" and cell["step"] in scores]
    steps, found = [cell["step"] for cell in known], {}
    for role in heads[-1]["scores"] if heads and known else ():
        inside = []
        for cell in known:
            own = scores[cell["step"]][role]
            inside.append({head: own[head] * (head in cell["smallest"]["heads"]) for head in own})
        held = [[head for head, value in one.items() if value > threshold] for one in inside]
        found[role] = {
            "over_steps": [{"step": step, "heads": names} for step, names in zip(steps, held, strict=True)],
            "handovers": handovers(steps, inside, threshold),
        }
    return found


def _algorithm_roles(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of the parts of the IOI algorithm, where it was looked for."""
    known = [cell for cell in cells if "algorithm" in cell]
    steps, found = [cell["step"] for cell in known], {}
    for role in known[-1]["algorithm"]["roles"] if known else ():
        held = [cell["algorithm"]["roles"].get(role, []) for cell in known]
        every = sorted({head for heads in held for head in heads})
        grids = [{head: float(head in heads) for head in every} for heads in held]
        found[role] = {
            "over_steps": [{"step": step, "heads": heads} for step, heads in zip(steps, held, strict=True)],
            "handovers": handovers(steps, grids, 0.5) if every else [],
        }
    return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _point(cell: dict[str, Any]) -> Point:
    folder = run_dir() / "circuits" / cell_name(cell["series"], cell["task"], cell["step"])
    smallest = Circuit.load(folder / "smallest") if cell["status"] == "OK" else None
    metric = cell["behaviour"]["metric"]["value"]
    level = cell["behaviour"]["accuracy"]["value"] if metric is None else metric
    return Point(cell["step"], level, Circuit.load(folder), smallest)


def when_emerged(rows: list[dict[str, Any]], estimates: Sequence[Mapping[str, float | None]]) -> dict[str, Any] | None:
    """When something stays above half of its gain: step and tokens, and the interval, in tokens if they are known.

    What has not emerged does so after the last checkpoint, if ever: `before` is that one, or 0 for a series that does
    not begin at step 0, in which it may have emerged unseen. None where nothing was measured.
    """
    values, lows, highs = ([one[key] for one in estimates] for key in ("value", "low", "high"))
    known = [place for place, value in enumerate(values) if value is not None]
    if not known:
        return None
    axis = "step" if any(row["tokens"] is None for row in rows) else "tokens"
    found = emergence(values, lows, highs)
    if found is None:
        before = rows[known[-1]][axis] if rows[known[0]]["step"] == 0 else 0
        return {"step": None, "tokens": None, "axis": axis, "at": None, "before": before, "sure": None}
    ends = {"at": found.place, "before": found.before, "sure": found.sure}
    places = {name: None if place is None else rows[place][axis] for name, place in ends.items()}
    return {"step": rows[found.place]["step"], "tokens": rows[found.place]["tokens"], "axis": axis, **places}


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
            role: when_emerged(rows, [dict.fromkeys(("value", "low", "high"), top[role]) for top in best])
            for role in best[0]
        },
        "handovers": {role: handovers(steps, [row["scores"][role] for row in rows], threshold) for role in best[0]},
    }
