"""From measured checkpoints to an evolution: rows over steps, likeness, stages, when things emerge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from circuitlit.errors import UserError
from circuitlit.evaluate.testing import with_holm
from circuitlit.files import file_name
from circuitlit.graph import Circuit
from circuitlit.store import Failure
from circuitlit.timeline.account import account, trends
from circuitlit.timeline.cells import Ablated, HeadsAtCheckpoint, InductionCheck, TaskAtCheckpoint
from circuitlit.timeline.checkpoints import Checkpoint
from circuitlit.timeline.emergence import Time, time_of_emergence
from circuitlit.timeline.evolution import (
    CellError,
    Evolution,
    HeadsEvolution,
    HeadsRow,
    Learned,
    SeriesEvolution,
    TaskEvolution,
    TaskRow,
)
from circuitlit.timeline.handovers import Role, handovers
from circuitlit.timeline.measured_heads import FollowSettings
from circuitlit.timeline.series import Noise, Point, follow, shared_by_neighbours, stages_of
from circuitlit.timeline.sizes import by_size

HEADS, CAUSAL = "heads", "causal"  # names of cells, beside those of tasks
Cells = dict[str, list[tuple[Checkpoint, Any]]]  # by task: what was measured, or why not


def cell_name(series: str, task: str, step: int) -> str:
    """Name of a measurement's file and folder."""
    return "--".join(file_name(part) for part in (series, task, f"step{step}"))


def summarise_evolution(
    cells: Mapping[str, Cells],
    tasks: list[str],
    model: str,
    circuits: Path,
    settings: FollowSettings,
    draws: int,
    found_by: str = "attribution",
) -> Evolution:
    """All that the table, the page and a reader want.

    Args:
        cells: what was measured, by series.
        tasks: their names.
        model: its name.
        circuits: folder of the circuits.
        settings: what was measured.
        draws: random circuits beside what neighbours share.
        found_by: "attribution" or "masks".

    Raises:
        UserError: nothing could be measured.
    """
    errors = [
        CellError(series=name, task=task, step=checkpoint.step, reason=content.error)
        for name, one in cells.items()
        for task, rows in one.items()
        for checkpoint, content in rows
        if isinstance(content, Failure)
    ]
    if len(errors) == sum(len(rows) for one in cells.values() for rows in one.values()):
        raise UserError(f"evolve: no checkpoint could be measured; the first: {errors[0].reason}")
    series = [_series(name, one, tasks, circuits, settings.heads.threshold, draws) for name, one in cells.items()]
    sizes = by_size(series, tasks)
    return with_holm(
        Evolution(
            model=model,
            tasks=tasks,
            circuits=found_by,
            faithfulness=settings.faithfulness,
            threshold=settings.heads.threshold,
            series=series,
            sizes=sizes,
            trends={task: trends(series, task) for task in tasks},
            account=account(series, sizes, tasks),
            errors=errors,
        )
    )


def _series(name: str, cells: Cells, tasks: list[str], circuits: Path, threshold: float, draws: int) -> SeriesEvolution:
    heads = [_heads_row(at, one) for at, one in cells.get(HEADS, []) if isinstance(one, HeadsAtCheckpoint)]
    known = [one.n_parameters for _, one in cells.get(HEADS, []) if isinstance(one, HeadsAtCheckpoint)]
    causal = cells.get(CAUSAL, [])
    last = causal[-1][1] if causal and heads else None
    return SeriesEvolution(
        name=name,
        n_parameters=known[-1] if known else None,
        tasks={
            task: _task(
                [
                    (at, one, circuits / cell_name(name, task, at.step))
                    for at, one in cells.get(task, [])
                    if isinstance(one, TaskAtCheckpoint)
                ],
                heads,
                threshold,
                draws,
            )
            for task in tasks
        },
        heads=_heads(heads, threshold),
        causal=_shares(last, heads[0]) if isinstance(last, InductionCheck) else None,
    )


def _task(
    cells: Sequence[tuple[Checkpoint, TaskAtCheckpoint, Path]],
    heads: Sequence[HeadsRow],
    threshold: float,
    draws: int,
) -> TaskEvolution:
    points = [_point(at, one, folder) for at, one, folder in cells]
    likeness = follow(points) if points else []
    noise = next((one.noise for _, one, _ in cells if one.noise is not None), Noise())
    rows = [
        TaskRow(**_own(one), step=at.step, tokens=at.tokens, likeness=alike)
        for (at, one, _), alike in zip(cells, likeness, strict=True)
    ]
    emerged = _emerged(rows)
    return TaskEvolution(
        rows=rows,
        noise=noise,
        stages=stages_of(points, likeness, noise),
        emerged=emerged,
        learned=_learned(rows, points, emerged, draws),
        roles=_roles(rows, heads, threshold),
        algorithm_roles=_algorithm_roles(rows),
    )


def _emerged(rows: Sequence[TaskRow]) -> Time | None:
    """When the accuracy does, by the intervals that a verdict goes by: those for new sentences where there are any."""
    accuracy = [row.behaviour.accuracy for row in rows]
    ends = ([one.bounds and one.bounds[end] for one in accuracy] for end in (0, 1))
    values = [one.value for one in accuracy]
    return time_of_emergence([row.step for row in rows], [row.tokens for row in rows], values, *ends)


def _own(cell: Any) -> dict[str, Any]:
    return {field.name: getattr(cell, field.name) for field in fields(cell)}


def _point(at: Checkpoint, cell: TaskAtCheckpoint, folder: Path) -> Point:
    smallest = Circuit.load(folder / "smallest") if cell.status == "OK" else None
    metric, accuracy = cell.behaviour.metric.value, cell.behaviour.accuracy.value
    level = accuracy if metric is None else metric
    assert level is not None
    return Point(at.step, level, Circuit.load(folder), smallest)


def _learned(rows: Sequence[TaskRow], points: Sequence[Point], begun: Time | None, draws: int) -> Learned:
    first = None if begun is None else begun.step
    late = [] if first is None else [row for row in rows if row.step >= first]
    shared = shared_by_neighbours([point for point in points if late and point.step >= late[0].step], draws)
    faithful = [found for row in late if (found := row.faithful) is not None]
    return Learned(
        nodes=_mean([found.n_nodes for found in faithful]),
        edges=_mean([found.n_edges for found in faithful]),
        stability=shared.nodes.corrected if shared and shared.nodes.strictest.expected < 1 else None,
        shared=shared.figures() if shared else None,
    )


def _roles(rows: Sequence[TaskRow], heads: Sequence[HeadsRow], threshold: float) -> dict[str, Role]:
    """By role: the heads of the smallest faithful circuit that have it, over steps, and who got it while one lost it.

    A head outside the circuit has no role in it, whatever its score.
    """
    scores = {row.step: row.scores for row in heads}
    known = [(row.step, found.heads) for row in rows if (found := row.faithful) is not None and row.step in scores]
    return {
        role: Role.of(
            [step for step, _ in known],
            [{head: value * (head in inside) for head, value in scores[step][role].items()} for step, inside in known],
            threshold,
        )
        for role in (heads[-1].scores if heads and known else ())
    }


def _algorithm_roles(rows: Sequence[TaskRow]) -> dict[str, Role]:
    """The same of the parts of the IOI algorithm, where it was looked for."""
    known = [(row.step, row.algorithm.roles) for row in rows if row.algorithm is not None]
    steps, found = [step for step, _ in known], {}
    for role in known[-1][1] if known else ():
        held = [roles.get(role, []) for _, roles in known]
        every = sorted({head for heads in held for head in heads})
        found[role] = Role.of(steps, [{head: float(head in heads) for head in every} for heads in held], 0.5)
    return found


def _heads_row(at: Checkpoint, cell: HeadsAtCheckpoint) -> HeadsRow:
    best = {role: max(scores.values()) for role, scores in cell.scores.items()}
    own = {name: getattr(cell, name) for name in ("scores", "loss", "accuracy")}
    return HeadsRow(step=at.step, tokens=at.tokens, best=best, **own)


def _heads(rows: Sequence[HeadsRow], threshold: float) -> HeadsEvolution:
    if not rows:
        return HeadsEvolution()
    steps, tokens = [row.step for row in rows], [row.tokens for row in rows]
    return HeadsEvolution(
        rows=list(rows),
        emerged={role: time_of_emergence(steps, tokens, [row.best[role] for row in rows]) for role in rows[0].best},
        handovers={role: handovers(steps, [row.scores[role] for row in rows], threshold) for role in rows[0].best},
    )


def _shares(check: InductionCheck, first: HeadsRow) -> InductionCheck:
    """The last checkpoint's ablations, as shares of what was gained since the first."""
    made = {}
    for name in ("loss", "accuracy"):
        own: Ablated | None = getattr(check, name)
        if own is None or own.intact.value is None:
            continue
        gain = own.intact.value - getattr(first, name)
        changes = {"share": own.effect, "random_share": own.random, "bystander_share": own.bystanders}
        shares = {
            key: None if gain == 0 or change is None or change.value is None else -change.value / gain
            for key, change in changes.items()
        }
        made[name] = replace(own, gain=gain, **shares)
    return replace(check, **made)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
