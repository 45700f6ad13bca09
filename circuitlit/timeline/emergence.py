"""When something is learned, over checkpoints, and how that and the circuits go with the size of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from circuitlit.evaluate.testing import censored_scores, correlation

LEAST = 0.1  # gain of accuracy or head score that counts as emergence
LEAST_SIZES = 5  # of n sizes permuted, the least two-sided p is 2 / n!

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
    """How a quantity goes with the size of the model; models of one size are not independent and count once.

    Attributes:
        r: correlation over sizes, None where it does not exist.
        p: two-sided, of sizes permuted; None below `LEAST_SIZES`, where it cannot fall to .05.
        sizes: that have a value.
        models: of these sizes.
    """

    r: float | None
    p: float | None
    sizes: int
    models: int


def trend(sizes: Sequence[float], values: Sequence[Value]) -> Trend:
    """Pearson correlation of the logarithms of model size and of a positive quantity, a mean over each size's models.

    Models without a value do not count.
    """
    known = [(size, math.log(value)) for size, value in zip(sizes, values, strict=True) if value and value > 0]
    return _over_sizes(known)


def trend_of_overlaps(sizes: Sequence[float], values: Sequence[Value]) -> Trend:
    """The same of J*, which may be 0 or below, as it is."""
    return _over_sizes([(size, value) for size, value in zip(sizes, values, strict=True) if value is not None])


def trend_of_times(sizes: Sequence[float], times: Sequence[Between]) -> Trend:
    """Correlation of the logarithm of model size with the order of times, which may not have come.

    Each model's time is scored by how many others it is surely later than (`censored_scores`); a size has the mean.
    """
    scores = censored_scores([(one.low, one.high) for one in times])
    return _over_sizes(list(zip(sizes, scores, strict=True)))


def _over_sizes(known: Sequence[tuple[float, float]]) -> Trend:
    means = {at: mean(value for size, value in known if size == at) for at in sorted({size for size, _ in known})}
    found = correlation([math.log(size) for size in means], list(means.values()))
    r, p = (None, None) if found is None else found
    return Trend(r, p if len(means) >= LEAST_SIZES else None, len(means), len(known))


@dataclass(frozen=True)
class Between:
    """A time after `low` and no later than `high`, which is infinite where it has not come."""

    low: float
    high: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> Between:
        """From an entry of evolve.json."""
        return cls(found["before"], math.inf if found["sure"] is None else found["sure"])


def within(times: Sequence[Between], ratio: float) -> bool | None:
    """Whether the latest is less than `ratio` times the earliest: True or False where that is sure, else None."""
    first, last = min(one.low for one in times), max(one.high for one in times)
    if first > 0 and last / first <= ratio:
        return True
    apart = max(one.low for one in times) >= ratio * min(one.high for one in times)
    return False if apart else None


def by_size(series: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """One row a model size, smallest first; models of equal size are seeds.

    Args:
        series: entries of evolve.json.
        tasks: their names.

    Returns:
        Rows with `n_parameters`, `series`, and `{value, low, high, n}` by task under `emerged`, `nodes`, `edges` and
        `stability`, by role under `heads`. Of emergence (`emerged`, `heads`), value is the geometric mean over seeds of
        the tokens (or steps), None where it has not come in all `seeds` but in `n`, and the interval goes from the
        earliest to the latest that any seed's interval holds; high is None where that is not known.
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
    at = [max(1.0, one["at"]) for one in known if one["at"] is not None]
    times = [Between.of(one) for one in known]
    high = max(one.high for one in times)
    return {
        "value": math.exp(mean(map(math.log, at))) if len(at) == len(known) else None,
        "low": min(one.low for one in times),
        "high": None if math.isinf(high) else high,
        "n": len(at),
        "seeds": len(known),
    }


def _spread(values: Sequence[Value]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"value": sum(known) / len(known), "low": min(known), "high": max(known), "n": len(known)}
