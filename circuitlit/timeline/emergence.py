"""When something is learned, over checkpoints, and how that and the circuits go with the size of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST = 0.1  # gain of accuracy or head score that counts as emergence

Value = float | None


@dataclass(frozen=True)
class Emergence:
    """The checkpoint from which on half of the gain is kept, and between which ones that surely began.

    Attributes:
        place: first checkpoint from which on the value itself keeps half of the gain.
        before: last checkpoint that is surely below: the upper end of its interval is; the first one where there is
            none.
        sure: first checkpoint from which on the lower end of the interval keeps half, None where that never is.
    """

    place: int
    before: int
    sure: int | None


def emergence(
    values: Sequence[Value], lows: Sequence[Value], highs: Sequence[Value], least: float = LEAST
) -> Emergence | None:
    """When half of what is gained in all is kept for good; places count all checkpoints.

    Args:
        values: at each checkpoint; None where it does not exist.
        lows, highs: ends of the intervals; the values themselves where there are none.
        least: gain that counts.

    Returns:
        None where the last lower end is not above the first value by `least`.
    """
    pairs = enumerate(zip(values, lows, strict=True))
    known = [place for place, (value, low) in pairs if value is not None and low is not None]
    if len(known) < 2 or (_number(lows, known[-1]) - _number(values, known[0])) <= least:
        return None
    half = (_number(values, known[0]) + _number(values, known[-1])) / 2
    place = _for_good(values, known, half)
    if place is None:
        return None
    before = [at for at in known if at < place and (highs[at] is None or _number(highs, at) < half)]
    return Emergence(place, before[-1] if before else known[0], _for_good(lows, known, half))


def _for_good(values: Sequence[Value], known: list[int], half: float) -> int | None:
    late = [place for place in known if _number(values, place) < half]
    return next((place for place in known if not late or place > late[-1]), None)


def _number(values: Sequence[Value], place: int) -> float:
    value = values[place]
    return math.nan if value is None else value


@dataclass(frozen=True)
class Trend:
    """How a quantity goes with the size of the model.

    Attributes:
        r: Pearson correlation of the logarithms, None where it does not exist.
        low, high: its 95 % interval by Fisher's transformation, which takes every model as an independent one.
        n: models.
    """

    r: float | None
    low: float | None
    high: float | None
    n: int


def trend(sizes: Sequence[float], values: Sequence[Value]) -> Trend:
    """Correlation of the logarithms of model size and of a positive quantity; models without it do not count."""
    known = [(size, value) for size, value in zip(sizes, values, strict=True) if value is not None and value > 0]
    if len(known) < 4 or len({size for size, _ in known}) < 2 or len({value for _, value in known}) < 2:
        return Trend(None, None, None, len(known))
    x, y = np.log(np.array(known, dtype=float)).T
    r = float(np.corrcoef(x, y)[0, 1])
    width = 1.96 / math.sqrt(len(known) - 3)
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    return Trend(r, math.tanh(middle - width), math.tanh(middle + width), len(known))


def by_size(series: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One row a model size, smallest first; models of equal size are seeds.

    Args:
        series: entries of evolve.json.
        tasks: their names.

    Returns:
        Rows with `n_parameters`, `series`, and `{value, low, high, n}` by task under `emerged`, `nodes`, `edges` and
        `stability`, by role under `heads`. Of emergence (`emerged`, `heads`), value is the geometric mean over seeds of
        the tokens (or steps), and the interval goes from the earliest to the latest that any seed's interval holds.
        Sizes of the smallest faithful circuits and the likeness of neighbours' nodes are means over the checkpoints
        from emergence on, with the least and the most of any seed.
    """
    rows = []
    for size in sorted({one["n_parameters"] for one in series if one["n_parameters"] is not None}):
        own = [one for one in series if one["n_parameters"] == size]
        roles = list(dict.fromkeys(role for one in own for role in one["heads"]["emerged"]))
        row: dict[str, Any] = {"n_parameters": size, "series": [one["name"] for one in own]}
        row["emerged"] = {task: _joined([one["tasks"][task]["emerged"] for one in own]) for task in tasks}
        row["heads"] = {role: _joined([one["heads"]["emerged"].get(role) for one in own]) for role in roles}
        for name in ("nodes", "edges", "stability"):
            row[name] = {task: _spread([one["tasks"][task]["learned"][name] for one in own]) for task in tasks}
        rows.append(row)
    return rows


def _joined(found: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    known = [one for one in found if one is not None]
    if not known:
        return None
    at = [max(1.0, one["at"]) for one in known]
    highs = [one["sure"] if one["sure"] is not None else math.inf for one in known]
    high = max(highs)
    value = math.exp(sum(map(math.log, at)) / len(at))
    low = min(one["before"] for one in known)
    return {"value": value, "low": low, "high": None if math.isinf(high) else high, "n": len(known)}


def _spread(values: Sequence[Value]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"value": sum(known) / len(known), "low": min(known), "high": max(known), "n": len(known)}
