"""Stages that can be refuted: runs that learn nothing have none, runs with known stages keep theirs.

The fast version of each table is in the default suite. The full ones, 200 seeds in every row, printed:
`pytest -m slow tests/test_chance.py -n 2 -s`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from synthetic_masks import Gradients, simulated
from synthetic_runs import at_once, cut_short, four_stages, nothing, walking

from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.timeline import Signals, Timeline, find_stages
from circuitlit.timeline.chance import BEYOND, DRAWS, noise_or_walk
from circuitlit.timeline.series import Noise, Point, follow, stages_of
from circuitlit.timeline.walks import walks

ALL = pytest.param(range(200), marks=pytest.mark.slow)
FALSE = 18  # of 200: what a rate of 5 % stays within in 99 of 100 cases

WALKS = {
    "noise in the gradient": Gradients(inside=False),
    "noise through gates": Gradients(),
    "noise that edges share": Gradients(shared=0.5),
}


def of_series(signals: Signals) -> Timeline:
    return find_stages(signals, resamples=0, null=noise_or_walk)


def verdicts(title: str, timelines: Iterable[Timeline]) -> Counter[str]:
    found = Counter(timeline.verdict for timeline in timelines)
    print(f"{title}: {dict(found)}")
    return found


@pytest.mark.parametrize("start", ["equal", "ranks"])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("seeds", [range(1), ALL], ids=["1", "200"])
def test_masks_that_walk_have_no_stages(seeds: range, walk: str, start: str) -> None:
    runs = (simulated(seed, WALKS[walk], start) for seed in seeds)
    found = verdicts(f"{walk}, {start} start", (run.timeline(resamples=0, draws=DRAWS) for run in runs))
    assert found["learning"] <= (FALSE if len(seeds) == 200 else 0)


@pytest.mark.parametrize("seeds", [range(1, 2), ALL], ids=["1", "200"])
def test_masks_that_learn_have_boundaries_beyond_chance(seeds: range) -> None:
    """How often is for the reader of the table: a circuit that is found little by little has none."""
    for signal in (5.0, 1.0) if len(seeds) == 200 else (5.0,):
        runs = (simulated(seed, Gradients(signal), "ranks") for seed in seeds)
        found = verdicts(f"signal {signal}", (run.timeline(resamples=0, draws=DRAWS) for run in runs))
        assert found["learning"] >= (len(seeds) / 4 if signal == 5 else 0)


def test_null_walks_go_as_far_as_walks_under_the_optimizer() -> None:
    """Fewer changes would make any walk look fast; the overlap of start and end is compared."""
    ratios = []
    for seed in range(3):
        run = simulated(seed, WALKS["noise in the gradient"], "ranks")
        values = np.stack(run.sample)
        null = walks(values, run.count, run.steps, run.schedule.steps, run.sure, 10)
        ratios.append((1 - null[:, 0, 0].mean()) / (1 - run.overlap(0, -1)))
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)


def circuits(seed: int, n: int) -> list[Point]:
    """Checkpoints whose metric walks, with circuits of nothing but noise."""
    draw, graph = np.random.default_rng(seed), Graph(3, 4, 4)
    scores = torch.from_numpy(draw.normal(size=(n, 1, graph.n_edges)).astype(np.float32))
    level = draw.normal(size=n).cumsum()
    return [
        Point(10 * at, float(level[at]), Circuit.cut(EdgeScores(graph, scores[at], "noise"), 40)) for at in range(n)
    ]


@pytest.mark.parametrize("n", [20, 40])
@pytest.mark.parametrize("seeds", [range(2), ALL], ids=["2", "200"])
def test_checkpoints_whose_metric_walks_have_no_stages(seeds: range, n: int) -> None:
    series = (circuits(seed, n) for seed in seeds)
    found = verdicts(f"{n} checkpoints", (stages_of(points, follow(points), Noise(), 0) for points in series))
    assert found["learning"] <= (FALSE if len(seeds) == 200 else 0)


@pytest.mark.parametrize("n", [20, 30, 50, 100])
@pytest.mark.parametrize("autocorrelation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("seeds", [range(3), ALL], ids=["3", "200"])
def test_noise_has_no_stages(seeds: range, autocorrelation: float, n: int) -> None:
    title = f"AR(1) noise of {autocorrelation}, {n} snapshots"
    found = verdicts(title, (of_series(nothing(seed, n, autocorrelation)) for seed in seeds))
    assert found["learning"] <= (FALSE if len(seeds) == 200 else 1)


@pytest.mark.parametrize("n", [20, 30, 50, 100])
@pytest.mark.parametrize("signals", [1, 4], ids=["level", "all"])
@pytest.mark.parametrize("seeds", [range(2), ALL], ids=["2", "200"])
def test_a_walk_may_be_undecided_but_has_no_stages(seeds: range, signals: int, n: int) -> None:
    title = f"{'level walks' if signals == 1 else 'all signals walk'}, {n} snapshots"
    found = verdicts(title, (of_series(walking(seed, n, signals)) for seed in seeds))
    assert found["learning"] <= (FALSE if len(seeds) == 200 else 1)


def scored(seeds: range, ratio: float, snapshots: tuple[int, int], autocorrelation: float) -> float:
    """F1 of boundaries beyond chance within one snapshot of the true ones."""
    hits = found = 0
    for seed in seeds:
        run = four_stages(seed, ratio, snapshots, autocorrelation)
        points = [at for at in of_series(run.signals).change_points if at.status == BEYOND]
        hits += sum(any(abs(at.step // 10 - knot) <= 1 for at in points) for knot in run.knots)
        found += len(points)
    score, power = 2 * hits / (found + 3 * len(seeds)), hits / (3 * len(seeds))
    print(f"AR(1) {autocorrelation}, ratio {ratio}, {snapshots} snapshots: F1 {score:.3f}, power {power:.3f}")
    return score


@pytest.mark.parametrize("autocorrelation", [0.0, 0.5])
def test_boundaries_are_found_within_one_snapshot(autocorrelation: float) -> None:
    assert scored(range(2), 5.0, (50, 60), autocorrelation) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("autocorrelation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [5.0, 2.5])
@pytest.mark.parametrize("snapshots", [(50, 150), (20, 49)])
def test_how_many_boundaries_are_found(autocorrelation: float, ratio: float, snapshots: tuple[int, int]) -> None:
    """F1 of at least .9 at a signal-to-noise ratio of 5 from 50 snapshots on; the rest of the table is to be read."""
    score = scored(range(200), ratio, snapshots, autocorrelation)
    assert (ratio, snapshots) != (5.0, (50, 150)) or score >= 0.9


@pytest.mark.parametrize("seeds", [range(2), ALL], ids=["2", "200"])
def test_a_run_cut_short_has_not_converged(seeds: range) -> None:
    learned = 0
    for seed in seeds:
        run = four_stages(seed, snapshots=(20, 150 if len(seeds) == 200 else 60))
        last = int(np.random.default_rng(seed).integers(max(8, run.knots[0]), run.knots[2] + 1))
        timeline = of_series(cut_short(run, last))
        assert "convergence" not in timeline.starts(), seed
        learned += timeline.verdict == "learning"
    assert learned >= len(seeds) / 2


@pytest.mark.parametrize("seeds", [range(2), ALL], ids=["2", "200"])
def test_a_task_solved_at_once_has_no_initialization(seeds: range) -> None:
    timelines = [of_series(at_once(seed, 150 if len(seeds) == 200 else 60)) for seed in seeds]
    assert not any("initialization" in timeline.starts() for timeline in timelines)
    assert sum(timeline.current == "convergence" for timeline in timelines) >= 0.8 * len(seeds)
