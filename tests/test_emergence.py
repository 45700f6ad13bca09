"""When things emerge over checkpoints, how that goes with size, and what is said to the published account."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.report.size_tables import when_text
from circuitlit.timeline.account import account
from circuitlit.timeline.emergence import (
    Between,
    Emergence,
    Joined,
    SeedRange,
    Time,
    emergence,
    time_of_emergence,
    trend,
    trend_of_overlaps,
    trend_of_times,
    within,
)
from circuitlit.timeline.evolution import HeadsEvolution, Learned, SeriesEvolution, TaskEvolution
from circuitlit.timeline.handovers import Handover, Held, HeldAt, Role, beyond_chance, handovers
from circuitlit.timeline.series import Noise
from circuitlit.timeline.sizes import by_size
from circuitlit.timeline.stages import Timeline
from circuitlit.timeline.summary import _emerged


def test_emergence_and_handovers_by_hand() -> None:
    values = [0.0, 0.7, 0.1, 0.9, 1.0]
    assert emergence(values, values, values) == Emergence(place=3, before=2, sure=3)  # not 1, where it did not stay
    unsure = emergence(values, [0.0, 0.6, 0.0, 0.4, 0.9], [0.2, 0.8, 0.6, 1.0, 1.0])
    assert unsure == Emergence(place=3, before=0, sure=4)
    assert emergence([0.5] * 5, [0.4] * 5, [0.6] * 5) is None
    scores = [{"a": 0.1, "b": 0.0, "c": 0.9}, {"a": 0.8, "b": 0.2, "c": 0.9}, {"a": 0.2, "b": 0.7, "c": 0.9}]
    assert handovers([1, 2, 4], scores, 0.5) == [Handover(head="a", peak=2, lost=4, taken_over_by=["b"])]


def test_one_sentence_that_is_learned_is_no_task() -> None:
    sentences, pairs = torch.arange(2).repeat_interleave(20), torch.arange(40)

    def emerged(learned: torch.Tensor) -> int | None:
        rows: Any = [
            SimpleNamespace(step=step, tokens=None, behaviour=SimpleNamespace(accuracy=mean_estimate(right, sentences)))
            for step, right in ((0, torch.zeros(40)), (1, learned.float()))
        ]
        found = _emerged(rows)
        return found and found.step

    assert emerged(sentences == 0) is None  # though of these two sentences half are right, .35 to .65
    assert emerged(pairs % 2 == 0) == 1


def entry(parameters: int, begun: tuple[float, float | None], nodes: float, name: str = "m") -> SeriesEvolution:
    """A series in which everything emerges between two token counts, the second None where it has not yet.

    One head loses its role as another gets it.
    """
    low, high = begun
    times = Time(step=None if high is None else int(high), tokens=high, axis="tokens", at=high, before=low, sure=high)
    learned = Learned(nodes=nodes, edges=3 * nodes, stability=0.5)
    accurate: Any = SimpleNamespace(behaviour=SimpleNamespace(accuracy=Estimate(1.0, 1.0, 1.0)))
    held = [["a0.h0"], ["a0.h0"], ["a0.h1"]]
    over_steps = [HeldAt(step=step, heads=heads) for step, heads in enumerate(held)]
    lost = [Handover(head="a0.h0", peak=1, lost=2, taken_over_by=["a0.h1"])]
    role = Role(over_steps=over_steps, handovers=lost)
    task = TaskEvolution(
        rows=[accurate],
        noise=Noise(),
        stages=Timeline("too few snapshots"),
        emerged=times,
        learned=learned,
        roles={"induction": role},
        algorithm_roles={},
    )
    heads = HeadsEvolution(emerged={"induction": times})
    return SeriesEvolution(name=name, n_parameters=parameters, tasks={"induction": task}, heads=heads, causal=None)


def verdicts(series: list[SeriesEvolution]) -> dict[str, str]:
    sizes = by_size(series, ["induction"])
    return {claim.claim: claim.verdict for claim in account(series, sizes, ["induction"])}


NODES = "circuits have more nodes in larger models (induction)"
SAME = "emergence after the same number of tokens at every size: the task induction"
TOGETHER = "a behaviour emerges together with the heads that carry it (induction)"
HANDED = "heads of a circuit lose their role to others while the behaviour stays"


def test_sizes_and_not_models_are_the_units_of_a_trend() -> None:
    line = trend([1, 1, 10, 100, 1000, 10_000], [1.0, 4.0, 4.0, 8.0, 16.0, 32.0])  # 2 is the mean of the seeds
    assert line.r == pytest.approx(1) and line.p == pytest.approx(2 / 120) and (line.sizes, line.models) == (5, 6)
    seeds = trend([1, 1, 10, 10, 100, 100, 1000, 1000], [2.0, 2.0, 4.0, 4.0, 8.0, 8.0, 16.0, 16.0])
    assert seeds.r == pytest.approx(1) and seeds.p is None and seeds.models == 8
    assert trend([1, 10, 100], [1.0, None, -2.0]).r is None
    overlaps = trend_of_overlaps([1, 10, 100, 1000], [-0.1, 0.0, 0.1, None])
    assert overlaps.r == pytest.approx(1) and (overlaps.sizes, overlaps.models) == (3, 3)
    few = [entry(size, (100, 140), 5 * size) for size in (1, 10, 100, 1000) for _ in range(2)]
    assert verdicts(few)[NODES] == "not measurable"
    assert verdicts([*few, entry(10_000, (100, 140), 50_000)])[NODES] == "agrees"


def test_unrelated_seeds_of_five_sizes_rarely_agree() -> None:
    """Seeds of one size are alike, sizes are not ordered: two of 40 are what chance gives."""
    draw, found = np.random.default_rng(0), 0
    for _ in range(40):
        own = draw.normal(size=5)
        values = np.exp(own.repeat(4) + 0.1 * draw.normal(size=20))
        p = trend([10**at for at in range(5) for _ in range(4)], values.tolist()).p
        found += p is not None and p <= 0.05
    assert found <= 6


def test_times_between_checkpoints_are_the_same_only_where_that_is_sure() -> None:
    grid = [Between(100, 200), Between(200, 400)]
    assert within(grid, 2.0) is None  # either might be at 200
    assert within(grid[:1] * 2, 2.0) is True and within([grid[0], Between(400, 800)], 2.0) is False
    never = Between(900, math.inf)
    assert within([grid[0], never], 2.0) is False and within([never, never], 2.0) is None
    assert within([Between(0, 100), Between(0, 100)], 2.0) is None
    assert verdicts([entry(1, (100, 200), 5), entry(10, (200, 400), 5)])[SAME] == "undecided"
    assert verdicts([entry(1, (100, 140), 5), entry(10, (100, 140), 5)])[SAME] == "agrees"
    assert verdicts([entry(1, (100, 140), 5), entry(10, (900, None), 5)])[SAME] == "disagrees"


def test_what_has_not_emerged_is_later_than_the_last_checkpoint() -> None:
    times = [Between(1, 2), Between(2, 4), Between(4, 8), Between(8, 16), Between(16, math.inf)]
    line = trend_of_times([1, 2, 4, 8, 16], times)
    assert line.r == pytest.approx(1) and line.p == pytest.approx(2 / 120) and line.sizes == 5
    [row] = by_size([entry(10, (50, 100), 5), entry(10, (800, None), 7)], ["induction"])
    assert row.emerged["induction"] == Joined(value=None, low=50, high=None, n=1, seeds=2)
    assert when_text(row.emerged["induction"]) == "1 of 2 seeds [50, -]"
    [row] = by_size([entry(10, (800, None), 5)], ["induction"])
    assert when_text(row.emerged["induction"]) == "not by 800"
    [row] = by_size([entry(10, (50, 100), 5), entry(10, (200, 400), 7)], ["induction"])
    assert row.emerged["induction"] == Joined(value=pytest.approx(200), low=50, high=400, n=2, seeds=2)
    assert row.nodes["induction"] == SeedRange(value=6, low=5, high=7, n=2)
    late, early = entry(1, (100, 200), 5), entry(1, (100, 200), 5)
    begun = late.tasks["induction"].emerged
    assert begun is not None
    late = replace(late, heads=HeadsEvolution(emerged={"induction": replace(begun, before=200, sure=400)}))
    assert verdicts([late])[TOGETHER] == "undecided" and verdicts([early])[TOGETHER] == "agrees"


def test_an_emergence_that_never_came_is_written_as_such() -> None:
    never = Time(step=None, tokens=None, axis="tokens", at=None, before=20, sure=None)
    assert time_of_emergence([0, 1, 2], [0, 10, 20], [0.5] * 3) == never
    assert time_of_emergence([1, 2], [10, 20], [0.5] * 2) == replace(never, before=0)
    assert time_of_emergence([0, 1, 2], [None, 10, 20], [0.5] * 3) == replace(never, axis="step", before=2)
    assert time_of_emergence([], [], []) is None


def roles(draw: np.random.Generator, planted: bool, n: int = 30, heads: int = 8) -> list[Held]:
    """Four roles of a series: heads that come and go by themselves, or in whose place another comes at once."""
    found = []
    for _ in range(4):
        times = draw.integers(1, n, size=(heads, 2))
        times.sort(1)
        steady = draw.random(heads) < 0.5
        over = [{h for h in range(heads) if (at >= times[h, 0] and (steady[h] or at < times[h, 1]))} for at in range(n)]
        if planted:
            lost, leaving = [int(at) for at in draw.choice(np.arange(2, n - 1), 2, replace=False)], (0, 1)
            over = [
                {h for h, at in zip(leaving, lost, strict=True) if step < at}
                | {h + 2 for h, at in zip(leaving, lost, strict=True) if step >= at}
                for step in range(n)
            ]
        scores = [
            {f"a0.h{h}": (h in one) * (1.0 + 0.001 * step) for h in range(heads)} for step, one in enumerate(over)
        ]
        found.append(Held.of(Role.of(range(n), scores, 0.5)))
    return found


def test_a_handover_is_more_than_some_head_that_rises_anyway() -> None:
    draw, seen = np.random.default_rng(0), {True: 0, False: 0}
    for planted in seen:
        for _ in range(20):
            p = beyond_chance([roles(draw, planted) for _ in range(2)])[1]
            seen[planted] += p is not None and p <= 0.05
    assert seen[True] >= 18 and seen[False] <= 4, seen
    assert verdicts([entry(1, (100, 200), 5)])[HANDED] == "not measurable"
