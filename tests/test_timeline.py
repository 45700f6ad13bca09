"""Stages found from data: synthetic runs with known ones, overlaps by hand, a mask run from the command line."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli import call, failure, settings
from synthetic_runs import every, four_stages, noise

from circuitlit.cli.evolution import Evolution
from circuitlit.discover import Schedule
from circuitlit.evaluate.similarity import corrected_overlap
from circuitlit.graph import Circuit, Graph, MaskLayout
from circuitlit.progress import CONSOLE
from circuitlit.report.timeline import print_timeline
from circuitlit.timeline import Snapshots, find_stages, follow_masks, segment
from circuitlit.timeline.agreement import agreement
from circuitlit.timeline.autocorrelation import ar1, pooled_ar1
from circuitlit.timeline.chance import BEYOND
from circuitlit.timeline.intervals import intervals
from circuitlit.timeline.labels import NAMES
from circuitlit.timeline.pieces import best_partitions, line_errors, lines
from circuitlit.timeline.stages import Boundary, Stage, Timeline
from circuitlit.timeline.walks import best_edges

NO_KNOTS = dict.fromkeys(("warmup_end", "harden_start", "hard_start", "lr_height", "lr_half"))


def test_fewer_checkpoints_give_the_same_stages() -> None:
    same = compared = 0
    for seed in range(200):
        run = four_stages(seed, ratio=10.0)
        n = len(run.signals.steps)
        if n < 80 or min(np.diff([0, *run.knots, n])) < 10:
            continue
        whole, half = (find_stages(every(run.signals, stride), resamples=0).starts() for stride in (1, 2))
        compared += 1
        same += whole.keys() == half.keys() and all(abs(whole[name] - half[name]) <= 20 for name in whole)
    assert compared >= 10 and same >= 0.9 * compared


def test_the_partition_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(13, 2))
    costs, (found,) = best_partitions(line_errors(values[None], np.zeros(1)))
    for pieces in (2, 3, 4):
        errors = {
            points: float(((values - lines(values, points)) ** 2).sum())
            for points in itertools.combinations(range(3, 11), pieces - 1)
            if min(np.diff([0, *points, 13])) >= 3
        }
        best = min(errors, key=errors.__getitem__)
        assert found[pieces - 1] == best and costs[0, pieces - 1] == pytest.approx(errors[best])


def test_line_errors_are_those_of_generalised_least_squares() -> None:
    values, c = np.random.default_rng(1).normal(size=(12, 2)), 0.4
    first, end = 3, 9
    time = np.arange(end - first)
    inverse = np.linalg.inv(c ** np.abs(time[:, None] - time) / (1 - c**2))
    design = np.stack([np.ones(len(time)), time], 1)
    part = values[first:end]
    left = part - design @ np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ part)
    copies = np.stack([np.zeros_like(values), values])
    errors = line_errors(copies, np.array([0.0, c]))
    assert errors[1, first, end] == pytest.approx(np.trace(left.T @ inverse @ left)) and errors[0, first, end] == 0
    assert np.isinf(errors[:, 3, 5]).all()


@pytest.mark.parametrize("true", [0.0, 0.5, 0.8])
def test_autocorrelation_is_estimated_without_bias(true: float) -> None:
    made = []
    for seed in range(30):
        values = noise(np.random.default_rng(seed), 60, 4, true)
        residuals = values - lines(values, (15, 30, 45))
        made.append(pooled_ar1(residuals, (15, 30, 45)))
        apart = np.array(ar1(residuals, (15, 30, 45)))[:, 0]
        assert apart == pytest.approx(np.array(pooled_ar1(residuals[:, :1], (15, 30, 45))))
    coefficient, variance = np.mean(made, 0)
    assert coefficient == pytest.approx(true, abs=0.08)
    assert variance == pytest.approx(1, rel=0.2 if true < 0.8 else 0.4)  # pieces of 15 hardly show so slow a noise


def test_intervals_hold_the_change_points() -> None:
    covered = total = 0
    for seed in range(12):
        run = four_stages(seed, ratio=2.5)
        parts = segment(run.signals.matrix())
        around = intervals(run.signals.matrix(), parts, resamples=50)
        for place, (low, high) in zip(parts.change_points, around, strict=True):
            assert low <= place <= high
            near = [knot for knot in run.knots if abs(knot - place) <= 4]
            covered += bool(near) and low - 1 <= near[0] <= high + 1
            total += bool(near)
    assert total >= 10 and covered >= 0.8 * total


def test_boundaries_beside_a_knot_are_marked() -> None:
    run = four_stages(0)
    plain = find_stages(run.signals, resamples=0)
    first, second = plain.change_points[:2]
    marked = find_stages(run.signals, knots=[first.step + 9.5], resamples=0)
    assert first.mark is None and marked.change_points[0].mark == "schedule"
    assert abs(second.step - first.step) > 20 and marked.change_points[1].mark is None
    content = json.loads(json.dumps(marked.to_dict()))
    assert [stage["name"] for stage in content["stages"]] == list(NAMES)
    assert content["stages"][1]["start"] == content["stages"][0]["end"]


GRAPH = Graph(2, 2, 1)  # readers: q0 q1 k v mlp in each layer; writers: input, a0.h0, a0.h1, m0, a1.h0 ...
LAYOUT = MaskLayout(GRAPH)
NAMED = ["input->a0.h0<q>", "a0.h1->m0", "m0->a1.h0<v>", "m0->logits"]


def log_alphas(*names: str) -> torch.Tensor:
    values = torch.linspace(-5, -4.9, GRAPH.n_edges)
    for name in names:
        values[GRAPH.edge_index(name)] += 10
    return values


def test_overlap_and_churn_against_numbers_by_hand() -> None:
    # 2 of 4 edges each: 0, 1 or 2 are shared in 1, 4 and 1 of 6 ways: E = (4 * 1/3 + 1) / 6 = 7/18
    assert corrected_overlap(1, 2, 2, 4) == pytest.approx((1 / 3 - 7 / 18) / (11 / 18))
    assert corrected_overlap(10, 10, 10, 40) == 1 and corrected_overlap(40, 40, 40, 40) == 1
    seen = Snapshots(LAYOUT, 3, Schedule(20, 0.1, start_sparsity=0.5, warmup=0.25, harden=0.5), 0.9)
    assert seen.add(0, log_alphas(*NAMED[:3])) and seen.add(10, log_alphas(*NAMED[1:]))
    assert not seen.add(10, log_alphas(*NAMED[1:]))
    assert seen.churn(1) == 2
    total = GRAPH.n_edges
    ways = [comb(3, shared) * comb(total - 3, 3 - shared) for shared in range(4)]
    expected = sum(n * shared / (6 - shared) for shared, n in enumerate(ways)) / comb(total, 3)
    by_hand = (2 / 4 - expected) / (1 - expected)
    assert seen.overlap_previous(1) == pytest.approx(by_hand)
    assert seen.velocity() == pytest.approx([(1 - by_hand) / 50] * 2)
    assert seen.knots() == NO_KNOTS | {"warmup_end": 5, "harden_start": 10, "lr_half": 10}
    slow = Snapshots(LAYOUT, 3, Schedule(20, 0.1, lr_warmup=4, lr_final=0.5, hard=0.25), 0.9).knots()
    assert slow == NO_KNOTS | {"hard_start": 15, "lr_height": 4, "lr_half": 12}
    assert Schedule(20, 0.1, lr_warmup=4, lr_final=0.5).lr_factor(12) == pytest.approx(0.75)


def test_random_sets_overlap_by_zero_on_average() -> None:
    draw = np.random.default_rng(0)
    shared = [len(np.intersect1d(draw.choice(400, 60, False), draw.choice(400, 60, False))) for _ in range(500)]
    assert np.mean([corrected_overlap(count, 60, 60, 400) for count in shared]) == pytest.approx(0, abs=0.01)


def test_masks_that_start_equal_are_a_random_set() -> None:
    kept, sure = best_edges(np.full(1000, 2.0, dtype=np.float32), 100)
    assert kept.sum() == 100 and not sure and 20 < kept[:500].sum() < 80
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    kept, sure = best_edges(values, 100)
    assert sure and set(np.flatnonzero(kept)) == set(np.argsort(-values)[:100])


def test_masks_that_never_change_are_no_learning() -> None:
    seen = Snapshots(LAYOUT, 3, Schedule(100, 0.1), 0.9)
    for step in range(0, 101, 10):
        seen.add(step, log_alphas(*NAMED[:3]))
    assert seen.timeline().verdict == "no learning"


def timeline_of(*starts: int) -> Timeline:
    at = [Boundary(step, step, step, status=BEYOND if step else None) for step in starts]
    stages = [Stage(name, start, start) for name, start in zip(NAMES, at, strict=False)]
    return Timeline("learning", (*stages, *(Stage(name) for name in NAMES[len(stages) :])))


def test_agreement_of_runs() -> None:
    knots = [{"warmup_end": 50.0}] * 3 + [{"warmup_end": 25.0}]
    runs = [timeline_of(0, 20, 50, 80), timeline_of(0, 22, 55, 95), timeline_of(0, 25, 52), timeline_of(0, 21, 27, 80)]
    rapid, tuning, convergence = agreement(runs, knots, 100)
    assert (rapid.verdict, rapid.moved) == ("agree", (None, None, None, "not with the schedule"))
    assert (tuning.verdict, tuning.moved[-1]) == ("agree", "with the schedule")
    assert (convergence.verdict, convergence.moved[-1]) == ("not reproducible", "unknown")


def test_two_runs_are_too_few_to_agree_and_one_is_no_two(
    mask_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near, far = agreement([timeline_of(0, 20, 50), timeline_of(0, 22, 75)], [{}] * 2, 100)[:2]
    assert (near.verdict, far.verdict) == ("too few runs", "not reproducible")
    shutil.copytree(mask_run, tmp_path / "copy")
    (tmp_path / "link").symlink_to(mask_run)
    for name, says in (("copy", "has the very masks of"), ("link", "twice; leave one out")):
        runs = f"runs=[{mask_run},{tmp_path}/{name}]"
        assert says in failure(capsys, runs, f"hydra.run.dir={tmp_path}/verb", verb="timeline")


def test_only_boundaries_beyond_chance_agree() -> None:
    doubtful = replace(timeline_of(0, 20), stages=(Stage(NAMES[0]), Stage(NAMES[1], Boundary(20, 20, 20, p=0.3))))
    from_the_start = Timeline("learning", (Stage(NAMES[0]), Stage(NAMES[1], Boundary(0, 0, 0))))
    for runs in ([doubtful] * 2, [from_the_start] * 2):
        whole = [replace(run, stages=(*run.stages, *map(Stage, NAMES[2:]))) for run in runs]
        rapid = agreement(whole, [{}] * 2, 100)[0]
        assert (rapid.verdict, rapid.starts) == ("not beyond chance", (None, None))


RUN = ["logger=csv", "callbacks.snapshot_every=5", "callbacks.probe_every=5", "mask.schedule.steps=60"]
RUN += ["callbacks.checkpoint_every=20", "mask.init=equal", "mask.init_from=null"]


@pytest.fixture(scope="module")
def mask_run(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evolution") / "one"
    call(*settings(local, folder, *RUN))
    return folder


def test_a_mask_run_leaves_its_evolution(mask_run: Path) -> None:
    content = json.loads((mask_run / "evolution.json").read_text())
    result = json.loads((mask_run / "result.json").read_text())
    circuit = Circuit.load(mask_run)
    assert content["stages"] == result["stages"] and content["stages"]["n_snapshots"] == 13
    assert content["steps"] == list(range(0, 61, 5))
    knots = NO_KNOTS | {"warmup_end": 30, "harden_start": 30, "hard_start": 42, "lr_half": 30}
    assert content["schedule"]["knots"] == knots
    assert all(0 < point["p"] <= 1 and point["draws"] == 199 for point in content["stages"]["change_points"])
    assert content["schedule"]["sparsity"][-1] == pytest.approx(0.8)
    assert content["open"][-1] == pytest.approx(0.2, abs=0.02)
    assert content["overlap_final"][-1] == 1 and content["progress"][0] == 0
    assert content["churn"][0] is None and None not in content["hard_kl"]
    assert content["reachable"][-1] == result["n_edges_reachable"]
    names = [circuit.graph.edge_name(int(edge)) for edge in circuit.kept[0].nonzero()]
    for kind in "qkv":
        for layer in range(2):
            by_hand = sum(f"->a{layer}.h" in name and name.endswith(f"<{kind}>") for name in names)
            assert content["kept"][kind][-1][layer] == by_hand
    assert content["kept"]["mlp"][-1] == [sum(name.endswith(f"->m{layer}") for name in names) for layer in range(2)]
    assert content["kept"]["logits"][-1] == sum(name.endswith("->logits") for name in names)
    flow = dict(zip(map(tuple, content["flow"]["pairs"]), content["flow"]["counts"][-1], strict=True))
    assert flow.get((0, 2), 0) == sum(name == "input->logits" for name in names)
    assert flow.get((1, 1), 0) == sum(
        name[:3] in ("a0.", "m0-") and ("->a1" in name or "->m1" in name) for name in names
    )
    assert sum(flow.values()) == circuit.n_edges
    assert all(sum(counts) == content["n_masks"] for counts in content["log_alpha"]["counts"])
    metrics = (next((mask_run / "csv").rglob("metrics.csv"))).read_text()
    assert all(f"masks/{name}" in metrics for name in ("overlap_previous", "undecided", "churn", "overlap_start"))


def test_the_verb_follows_saved_runs_finished_or_not(
    mask_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = (mask_run / "evolution.json").read_text()
    copy = tmp_path / "killed"
    shutil.copytree(mask_run, copy)
    for name in ("evolution.json", "result.json", "circuit.safetensors"):
        (copy / name).unlink()
    call(f"run={copy}", f"hydra.run.dir={tmp_path}/verb", verb="timeline")
    assert (copy / "evolution.json").read_text() == saved
    shown = capsys.readouterr().out
    assert "13 snapshots to step 60 of 60" in " ".join(shown.split()) and all(name in shown for name in NAMES)
    assert "name one run" in failure(capsys, f"hydra.run.dir={tmp_path}/verb", verb="timeline")
    assert "no masks" in failure(capsys, f"run={tmp_path}", f"hydra.run.dir={tmp_path}/verb", verb="timeline")


def test_the_verb_says_which_boundaries_are_beyond_chance(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Snapshots(LAYOUT, 3, Schedule(20, 0.1), 0.9)
    for step in (0, 10, 20):
        seen.add(step, log_alphas(*NAMED[step // 10 : step // 10 + 3]))
    middle, other = Boundary(10, 0, 20, None, 0.005, None, 199, BEYOND), Boundary(20, 20, 20, None, 0.3, None, 199, "x")
    stages = (Stage(NAMES[0], Boundary(0, 0, 0), middle), Stage(NAMES[1], middle, Boundary(20, 20, 20)))
    timeline = Timeline("learning", stages, (middle, other), (), 3)
    print_timeline(follow_masks(seen).replaced(stages=timeline), "runs/one", CONSOLE)
    shown = " ".join(capsys.readouterr().out.split())
    assert "10 [0, 20] 0.005" in shown and "no stage begins at step 20: x, p 0.300" in shown


def test_seeds_and_a_shorter_warm_up_are_compared(
    mask_run: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["mask.schedule.warmup=0.25", "logger=none", "callbacks.probe_every=0"]
    call(*settings(local, tmp_path / "other", *RUN, "seed=1", "logger=none", "callbacks.probe_every=0"))
    call(*settings(local, tmp_path / "short", *RUN, *short))
    runs = f"runs=[{mask_run},{tmp_path}/other,{tmp_path}/short]"
    call(runs, f"hydra.run.dir={tmp_path}/verb", verb="timeline")
    content = json.loads((tmp_path / "verb" / "agreement.json").read_text())
    assert content["repetitions"] == [True, True, False]
    assert [row["stage"] for row in content["starts"]] == list(NAMES[1:])
    assert {row["verdict"] for row in content["starts"]} <= {"too few runs", "not reproducible", "not beyond chance"}
    assert "short (other schedule)" in capsys.readouterr().out.replace("\n", " ")


def test_a_resumed_run_has_the_whole_evolution(mask_run: Path, local: Path, tmp_path: Path) -> None:
    copy = tmp_path / "resumed"
    shutil.copytree(mask_run, copy)
    for step in range(45, 61, 5):
        (copy / "masks" / f"step_{step:06d}.safetensors").unlink()
    (copy / "evolution.json").unlink()
    call(*settings(local, copy, *RUN, f"ckpt_path={copy}/checkpoints/step_000040.ckpt"))
    assert (copy / "evolution.json").read_text() == (mask_run / "evolution.json").read_text()


@pytest.mark.parametrize(("every", "steps"), [(5, [0, 5, 10, 12]), (100, [12])])
def test_what_a_run_saw_of_its_masks_is_what_their_files_say(
    local: Path, tmp_path: Path, every: int, steps: list[int]
) -> None:
    call(*settings(local, tmp_path, "logger=none", f"callbacks.snapshot_every={every}", "mask.sites=both"))
    seen = (tmp_path / "evolution.json").read_text()
    assert json.loads(seen)["steps"] == steps
    follow_masks(tmp_path).save(tmp_path)
    assert (tmp_path / "evolution.json").read_text() == seen


def test_a_stage_that_was_not_judged_anew_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging takes longer than the callback's share of the time, so that only the first snapshot has a stage."""
    logged: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda figures, step: logged.append(figures))
    followed = Evolution(Path(), 1, every=1)
    monkeypatch.setattr(followed, "_take_in", lambda *_: True)
    judged = SimpleNamespace(current=NAMES[1])
    followed.seen = SimpleNamespace(  # type: ignore[assignment]
        steps=[0], undecided=[0.5], overlap=lambda *_: 1.0, knots=dict, timeline=lambda resamples: judged
    )
    for step in range(3):
        trainer: Any = SimpleNamespace(global_step=step, loggers=[logger])
        followed.look(trainer, None)  # type: ignore[arg-type]
        followed.seconds = 1e9
    assert [figures.get("masks/stage_untested") for figures in logged] == [2.0, None, None]
    assert followed.stage == NAMES[1]


@pytest.mark.long
def test_a_run_may_stop_at_convergence(local: Path, tmp_path: Path) -> None:
    # the target is reached at step 7, and the learning rate falls to zero
    more = ["mask.schedule.warmup=0.05", "mask.schedule.harden=0", "callbacks.snapshot_every=5", "logger=none"]
    more += ["mask.schedule.steps=150", "mask.schedule.lr_final=0", "callbacks.stop_at_convergence=true"]
    more += ["callbacks.probe_every=0", "callbacks.checkpoint_every=0"]
    call(*settings(local, tmp_path, *more))
    result = json.loads((tmp_path / "result.json").read_text())
    stopped = result["steps"] < 150  # on a stage that has not been compared with chance
    evolution = json.loads((tmp_path / "evolution.json").read_text())
    assert stopped == (result["stages"]["n_snapshots"] < 31)
    assert not stopped or max(evolution["velocity"][-3:]) < 0.05 * max(evolution["velocity"])
    assert max(int(path.stem[5:]) for path in (tmp_path / "masks").iterdir()) == result["steps"]
