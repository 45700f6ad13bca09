"""Runs with known stages: straight pieces between random knots, white or AR(1) noise about them.

Settings of the detection were chosen on seeds from 1000 on; the tests use seeds below 200.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from circuitlit.timeline import Signals

ONE_SIDED = 1.645  # 95th percentile of the standard normal


@dataclass(frozen=True)
class Synthetic:
    """A run, and the first snapshot of its second, third and fourth stage."""

    signals: Signals
    knots: tuple[int, ...]


def noise(draw: np.random.Generator, n: int, width: int, coefficient: float) -> np.ndarray:
    """AR(1) noise of variance 1."""
    shocks = draw.normal(size=(n + 50, width))
    values = shocks.copy()
    for t in range(1, len(values)):
        values[t] = coefficient * values[t - 1] + np.sqrt(1 - coefficient**2) * shocks[t]
    return values[50:]


def length(draw: np.random.Generator, shortest: int = 20, longest: int = 150) -> int:
    """A number of snapshots, log-uniform."""
    return round(float(np.exp(draw.uniform(np.log(shortest), np.log(longest)))))


def coefficient(seed: int) -> float:
    """Even seeds have white noise, odd ones AR(1) of .5."""
    return 0.5 * (seed % 2)


def four_stages(
    seed: int, ratio: float = 5.0, snapshots: tuple[int, int] = (20, 150), autocorrelation: float | None = None
) -> Synthetic:
    """A run of four stages of at least four snapshots.

    Args:
        seed: of everything that is drawn.
        ratio: a signal's deviation by its noise's.
        snapshots: fewest and most.
        autocorrelation: of the noise; None as `coefficient` says.
    """
    draw = np.random.default_rng(seed)
    n = length(draw, *snapshots)
    knots = np.zeros(3, int)
    while min(np.diff([0, *knots, n])) < 4:
        knots = np.sort(draw.choice(np.arange(4, n - 3), 3, replace=False))

    def straight(*values: float) -> np.ndarray:
        return np.interp(np.arange(n), [0, *knots, n - 1], values)

    level = straight(0, draw.uniform(0, 0.05), draw.uniform(0.92, 0.97), 1, 1)
    overlap = straight(draw.uniform(0.1, 0.3), draw.uniform(0.3, 0.4), draw.uniform(0.75, 0.85), 1, 1)
    size = straight(1, draw.uniform(0.9, 1), draw.uniform(0.3, 0.45), draw.uniform(0, 0.1), 0)
    size[knots[2] :] = size[knots[2]]
    speeds = [draw.uniform(0.1, 0.3), 1, draw.uniform(0.3, 0.5), 0]
    velocity = np.repeat(speeds, np.diff([0, *knots, n]))
    clean = np.stack([level, velocity, overlap, size], 1)
    deviation = clean.std(0) / ratio
    seen = clean + deviation * noise(draw, n, 4, coefficient(seed) if autocorrelation is None else autocorrelation)
    floors = ONE_SIDED * deviation
    return Synthetic(_signals(seen, floors[1], floors[2]), tuple(map(int, knots)))


def nothing(seed: int, n: int, autocorrelation: float) -> Signals:
    """Pure noise."""
    return _signals(noise(np.random.default_rng(seed), n, 4, autocorrelation), ONE_SIDED, ONE_SIDED)


def walking(seed: int, n: int, signals: int) -> Signals:
    """The first signals, 1 for the level alone, are walks; the others are AR(1) noise of .5."""
    draw = np.random.default_rng(seed)
    seen = noise(draw, n, 4, 0.5)
    seen[:, :signals] = draw.normal(size=(n, signals)).cumsum(0)
    return _signals(seen, ONE_SIDED * seen[:, 1].std(), ONE_SIDED * seen[:, 2].std())


def at_once(seed: int, longest: int = 150) -> Signals:
    """A task solved before the second snapshot."""
    draw = np.random.default_rng(seed)
    n = length(draw, longest=longest)
    clean = np.tile([1.0, 0.0, 1.0, 0.0], (n, 1))
    clean[0] = [0, 1, 0.2, 1]
    clean[1, 1] = 1
    seen = clean + 0.07 * noise(draw, n, 4, coefficient(seed))
    return _signals(seen, 0.07 * ONE_SIDED, 0.07 * ONE_SIDED)


def cut_short(run: Synthetic, last: int) -> Signals:
    """The first snapshots of a run; the last one's circuit is then the final one."""
    signals = every(run.signals, 1, last)
    return replace(signals, overlap=signals.overlap + 1 - signals.overlap[-1])


def every(signals: Signals, stride: int, last: int | None = None) -> Signals:
    """Some of the snapshots."""
    kept = slice(None, last, stride)
    others = {name: values[kept] for name, values in signals.others.items()}
    series = {name: getattr(signals, name)[kept] for name in ("steps", "level", "velocity", "overlap")}
    return replace(signals, others=others, **series)


def _signals(seen: np.ndarray, velocity_floor: float, overlap_floor: float) -> Signals:
    level, velocity, overlap, size = seen.T
    return Signals(
        [10 * at for at in range(len(seen))],
        level,
        velocity,
        overlap,
        {"size": size},
        velocity_floor=float(velocity_floor),
        overlap_floor=float(overlap_floor),
    )
