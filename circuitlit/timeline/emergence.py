"""When something is learned, over checkpoints, and how that and the circuits go with the size of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class Time:
    """When something stays above half of its gain.

    Attributes:
        step, tokens: of the checkpoint; None where it has not emerged, or tokens are unknown.
        axis: what the others are counted in: tokens if they are known.
        at: the same checkpoint on the axis; None where it has not emerged.
        before: surely not before; of what has not emerged the last checkpoint, or 0 for a series that does not begin at
            step 0, in which it may have emerged unseen.
        sure: surely by then; None where that is at no checkpoint.
    """

    step: int | None
    tokens: float | None
    axis: Literal["step", "tokens"]
    at: float | None
    before: float
    sure: float | None


def time_of_emergence(
    steps: Sequence[int],
    tokens: Sequence[float | None],
    values: Sequence[Value],
    lows: Sequence[Value] | None = None,
    highs: Sequence[Value] | None = None,
) -> Time | None:
    """When something emerges over checkpoints; None where nothing was measured.

    Args:
        steps, tokens: of the checkpoints; None for tokens that are unknown.
        values, lows, highs: as in `emergence`; without ends of intervals the values themselves.
    """
    known = [place for place, value in enumerate(values) if value is not None]
    if not known:
        return None
    counted = [count for count in tokens if count is not None]
    places: Sequence[float] = counted if len(counted) == len(steps) else steps
    axis: Literal["step", "tokens"] = "tokens" if places is counted else "step"
    found = emergence(values, values if lows is None else lows, values if highs is None else highs)
    if found is None:
        before = places[known[-1]] if steps[known[0]] == 0 else 0
        return Time(step=None, tokens=None, axis=axis, at=None, before=before, sure=None)
    return Time(
        step=steps[found.place],
        tokens=tokens[found.place],
        axis=axis,
        at=places[found.place],
        before=places[found.before],
        sure=None if found.sure is None else places[found.sure],
    )


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
    def of(cls, found: Time) -> Between:
        """Of an emergence."""
        return cls(found.before, math.inf if found.sure is None else found.sure)


def within(times: Sequence[Between], ratio: float) -> bool | None:
    """Whether the latest is less than `ratio` times the earliest: True or False where that is sure, else None."""
    first, last = min(one.low for one in times), max(one.high for one in times)
    if first > 0 and last / first <= ratio:
        return True
    apart = max(one.low for one in times) >= ratio * min(one.high for one in times)
    return False if apart else None


@dataclass(frozen=True, kw_only=True)
class Joined:
    """When something emerges in several seeds of one size.

    Attributes:
        value: geometric mean over seeds of the tokens (or steps); None where it has not come in all `seeds` but in `n`.
        low, high: the earliest and latest that any seed's interval holds; high is None where that is not known.
        n, seeds: seeds in which it has come, and all.
    """

    value: float | None
    low: float
    high: float | None
    n: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class SeedRange:
    """Mean, least and most over `n` seeds."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """All models of one size; those are seeds.

    Attributes:
        n_parameters: of the size.
        series: names of its models.
        emerged, heads: when tasks, and the best head score of each role, do.
        nodes, edges: of the smallest faithful circuit by task, means over the checkpoints from emergence on.
        stability: likeness of neighbours' nodes, the same.
    """

    n_parameters: int
    series: list[str]
    emerged: dict[str, Joined | None]
    heads: dict[str, Joined | None]
    nodes: dict[str, SeedRange | None]
    edges: dict[str, SeedRange | None]
    stability: dict[str, SeedRange | None]
