"""When a watched circuit has drifted: limits from what other pairs would have shown at the start."""

from __future__ import annotations

from dataclasses import replace

import torch

from circuitlit.evaluate.similarity import Spread
from circuitlit.evaluate.statistics import Function, statistic
from circuitlit.objective import Outcome
from circuitlit.timeline.watched import Alarm, Limits, Reading

LEVEL = 0.99


def limits_at_start(
    spread: Spread | None, circuit: Outcome, full: Outcome, corrupted: Outcome, given: Limits
) -> Limits:
    """Limits that were given, and for the others those of the null: how far resampling the pairs moves each figure.

    Args:
        spread: J* of circuits of every two resamples of the training pairs; None gives the overlap no limit.
        circuit, full, corrupted: the start circuit's, the model's and the corrupted run's outcomes on the test pairs.
        given: limits that are not to be drawn.
    """
    columns = torch.stack([circuit.metric, full.metric, corrupted.metric])
    drawn = {
        "overlap": None if spread is None else min(spread.values),
        "faithfulness": _least(lambda m: (m[0] - m[2]) / (m[1] - m[2]), columns, full),
        "accuracy": _least(lambda m: m[0], full.accuracy[None], full),
        "metric": _least(lambda m: m[0], full.metric[None], full),
    }
    return replace(given, **{name: value for name, value in drawn.items() if getattr(given, name) is None})


def _least(function: Function, columns: torch.Tensor, pairs: Outcome) -> float | None:
    """A figure less the 99th percentile of how far two resamples of the pairs lie apart."""
    found = statistic(function, columns, pairs.group)
    apart = (found.resampled - found.resampled.roll(1, 0)).abs()
    least = found.value - torch.nanquantile(apart, LEVEL)
    return float(least) if bool(least.isfinite()) else None


def alarms_of(reading: Reading, limits: Limits, without: tuple[str, ...] = ()) -> list[Alarm]:
    """Figures of a reading beyond their limits.

    Args:
        reading: with its figures.
        limits: of each; None sounds no alarm.
        without: figures that sound none.
    """
    figures, found = reading.figures(), []
    for name in ("overlap", "faithfulness", "accuracy", "metric", "text_kl"):
        limit, value = getattr(limits, name), figures.get(name)
        if limit is None or value is None or name in without:
            continue
        if value > limit if name == "text_kl" else value < limit:
            found.append(Alarm(signal=name, value=value, limit=limit))
    return found
