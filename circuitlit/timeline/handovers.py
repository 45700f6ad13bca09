"""Heads that lose a role while others get it, and how often that happens by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitlit.evaluate.testing import LEVEL, rank_p

DRAWS = 999


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A head that lost a role.

    Attributes:
        head: its name.
        peak, lost: steps at which it had most of it, and from which on it has it no more.
        taken_over_by: heads that got the role for good after the one and by the other.
    """

    head: str
    peak: int
    lost: int
    taken_over_by: list[str]


@dataclass(frozen=True, kw_only=True)
class HeldAt:
    """The heads that have a role at a step."""

    step: int
    heads: list[str]


@dataclass(frozen=True, kw_only=True)
class Role:
    """Who has a role over the checkpoints, and who lost it."""

    over_steps: list[HeldAt]
    handovers: list[Handover]

    @classmethod
    def of(cls, steps: Sequence[int], scores: Sequence[Mapping[str, float]], threshold: float) -> Role:
        """From the heads' scores at each step; above the threshold a head has the role."""
        held = [[head for head, value in one.items() if value > threshold] for one in scores]
        over_steps = [HeldAt(step=step, heads=heads) for step, heads in zip(steps, held, strict=True)]
        return cls(over_steps=over_steps, handovers=handovers(steps, scores, threshold))


def handovers(steps: Sequence[int], scores: Sequence[Mapping[str, float]], threshold: float) -> list[Handover]:
    """Heads that lost a role, and the heads that got it meanwhile.

    Args:
        steps: of the checkpoints.
        scores: each checkpoint's score by head name.
        threshold: above it a head has the role.

    Returns:
        A row for each head that once had the role and has it no more at the end: when it peaked, the first checkpoint
        without it for good, and the heads that got the role for good after the one and by the other. Some head may do
        so anyway: see `beyond_chance`.
    """
    held = [{head for head, value in one.items() if value > threshold} for one in scores]
    gains, rows = _gains(held), []
    for head in scores[-1] if scores else ():
        own = [one.get(head, 0.0) for one in scores]
        if head in held[-1] or max(own) <= threshold:
            continue
        peak = int(np.argmax(own))
        lost = max(place for place, value in enumerate(own) if value > threshold) + 1
        meanwhile = sorted(name for name, place in gains.items() if peak < place <= lost)
        rows.append(Handover(head=head, peak=steps[peak], lost=steps[lost], taken_over_by=meanwhile))
    return rows


def _gains(held: Sequence[set[str]]) -> dict[str, int]:
    """First checkpoint from which on each head keeps the role to the end."""
    without = {head: [at for at, heads in enumerate(held) if head not in heads] for head in (held[-1] if held else ())}
    return {head: places[-1] + 1 if places else 0 for head, places in without.items()}


@dataclass(frozen=True)
class Held:
    """What happened to one role between its first checkpoint and the last.

    Attributes:
        changes: from one checkpoint to the next, since the first at which any head had the role.
        gains: changes with which a head got the role for good, from 0.
        losses: changes from a head's peak to its loss: the first one, and how many.
    """

    changes: int
    gains: frozenset[int]
    losses: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, role: Role) -> Held:
        """Of a role."""
        steps = [row.step for row in role.over_steps]
        held = [set(row.heads) for row in role.over_steps]
        first = next((place for place, heads in enumerate(held) if heads), 0)
        gains = frozenset(place - 1 for place in _gains(held[first:]).values() if place)
        ends = [(steps.index(row.peak), steps.index(row.lost)) for row in role.handovers]
        losses = tuple((peak - first, lost - peak) for peak, lost in ends)
        return cls(max(0, len(held) - 1 - first), gains, losses)

    def succeeded(self, share: float = 0.0) -> int:
        """Losses during which a head gets the role, all moved on by a share of the changes, in a ring."""
        moved = int(share * self.changes)
        return sum(
            any((first + moved + more) % self.changes in self.gains for more in range(length))
            for first, length in self.losses
        )


def beyond_chance(series: Sequence[Sequence[Held]]) -> tuple[float, float | None]:
    """How many losses have a successor when they are moved in time, and p of as many as there are.

    All losses of a series move together, so that tasks and roles that share heads stay together; gains stay. A time at
    which heads get and lose roles in general is not in this null.

    Args:
        series: of each, what happened to its roles.

    Returns:
        The mean over random moves, and p; None where there are too few moves for p to reach .05.
    """
    moves = [max((role.changes for role in roles if role.losses), default=1) for roles in series]
    shares = np.random.default_rng(0).random((DRAWS, len(series)))
    counts = [
        sum(role.succeeded(share) for roles, share in zip(series, row, strict=True) for role in roles) for row in shares
    ]
    found = sum(role.succeeded() for roles in series for role in roles)
    return float(np.mean(counts)), rank_p(found, counts) if math.prod(moves) >= 1 / LEVEL else None
