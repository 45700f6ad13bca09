"""One row for each size of model: when tasks and heads emerge, how large circuits are and how stable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from circuitlit.timeline.emergence import Between, Joined, SeedRange, SizeRow, Time
from circuitlit.timeline.evolution import SeriesEvolution


def by_size(series: Sequence[SeriesEvolution], tasks: Sequence[str]) -> list[SizeRow]:
    """One row a model size, smallest first.

    Args:
        series: training runs.
        tasks: their names.
    """
    rows = []
    for size in sorted({one.n_parameters for one in series if one.n_parameters is not None}):
        own = [one for one in series if one.n_parameters == size]
        roles = list(dict.fromkeys(role for one in own for role in one.heads.emerged))
        learned = {task: [one.tasks[task].learned for one in own] for task in tasks}
        rows.append(
            SizeRow(
                n_parameters=size,
                series=[one.name for one in own],
                emerged={task: _joined([one.tasks[task].emerged for one in own]) for task in tasks},
                heads={role: _joined([one.heads.emerged.get(role) for one in own]) for role in roles},
                nodes={task: _range([one.nodes for one in found]) for task, found in learned.items()},
                edges={task: _range([one.edges for one in found]) for task, found in learned.items()},
                stability={task: _range([one.stability for one in found]) for task, found in learned.items()},
            )
        )
    return rows


def _joined(found: Sequence[Time | None]) -> Joined | None:
    known = [one for one in found if one is not None]
    if not known:
        return None
    at = [max(1.0, one.at) for one in known if one.at is not None]
    times = [Between.of(one) for one in known]
    high = max(one.high for one in times)
    return Joined(
        value=math.exp(mean(map(math.log, at))) if len(at) == len(known) else None,
        low=min(one.low for one in times),
        high=None if math.isinf(high) else high,
        n=len(at),
        seeds=len(known),
    )


def _range(values: Sequence[float | None]) -> SeedRange | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return SeedRange(value=sum(known) / len(known), low=min(known), high=max(known), n=len(known))
