"""Stability: identities of inclusion frequencies, planted edges, noise, and halves that know nothing of each other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_rivals import FIRST, edges_of, first_circuit, planted_rivals

from circuitlit import Circuit, EdgeScores, Method, Schedule, Stability, UserError, Workbench, eap_ig, measure_stability
from circuitlit.discover.workbench import Ablation, Resampler
from circuitlit.evaluate import find as finding
from circuitlit.evaluate.find import SCHEDULE
from circuitlit.evaluate.trust.again import splits_of
from circuitlit.evaluate.trust.halves import consensus
from circuitlit.evaluate.trust.stability import core_bound

FAST: dict[str, Any] = {"halves": 3, "resamples": 3, "seeds": 2, "pairs": 8}


def noise(loss: Any, references: Any, batches: Iterable[Any]) -> EdgeScores:
    """Scores of nothing but which pairs they are made from."""
    pairs = sorted(int(index) for batch in batches for index in batch.index)
    draw = torch.Generator().manual_seed(hash(tuple(pairs)) % 2**31)
    return EdgeScores(loss.layout.graph, torch.rand(1, loss.layout.graph.n_edges, generator=draw), "noise")


@pytest.fixture(scope="module")
def bench() -> Workbench:
    """A model with one planted chain of four edges; pairs in eight groups."""
    made = planted_rivals("gpt2", "one", 0)
    train = replace(made.data.train, groups=tuple(row % 8 for row in range(len(made.data.train))))
    made.data.train = train
    return replace(made, count=20)


def circuit_of(bench: Workbench, size: int) -> Circuit:
    draw = torch.Generator().manual_seed(0)
    return Circuit.cut(
        EdgeScores(bench.subject.graph, torch.rand(1, bench.subject.graph.n_edges, generator=draw), "x"), size
    )


def test_halves_have_nothing_in_common_and_differ() -> None:
    units = [[2 * unit, 2 * unit + 1] for unit in range(4)]
    found = splits_of(units, 10, 0)
    assert len(found) == 3  # all that four units have
    for one, two in found:
        assert sorted([*one, *two]) == list(range(8)) and all(row ^ 1 in one for row in one)


def test_the_bound_is_that_of_the_page() -> None:
    found = [round(core_bound(2261, 70651, share)) for share in (0.75, 0.9, 1.0)]
    assert found == [145, 90, 72] and core_bound(2261, 70651, 0.5) == 2261


def test_the_consensus_takes_the_most_frequent_and_then_the_highest() -> None:
    counts, order = torch.tensor([3.0, 2, 2, 1, 0]), torch.tensor([-9.0, 1, 2, 8, 0])
    assert consensus(counts, order, 2).tolist() == [True, False, True, False, False]
    assert consensus(counts, order, 4).tolist() == [True, True, True, True, False]


def test_frequencies_add_up_and_their_squares_say_what_two_circuits_share(bench: Workbench, tmp_path: Path) -> None:
    circuit = circuit_of(bench, 20)
    found = measure_stability(bench, circuit, method=Method.of(eap_ig, steps=2), **FAST, causes=["pairs", "sentences"])
    for one, count in zip(found.halves, (6, 6), strict=True):
        assert one.n_circuits == count and sum(one.pi) == pytest.approx(20)
        assert one.squares == pytest.approx(20 / count + (1 - 1 / count) * one.shared)
        assert one.core == sum(share >= 0.9 for share in one.pi)
    found.save(tmp_path)
    assert Stability.load(tmp_path) == found and len(found.to_frame()) == 2


@pytest.mark.long
def test_planted_edges_are_always_found(bench: Workbench) -> None:
    planted = first_circuit(bench, "one")
    short = replace(SCHEDULE, steps=20)
    found = measure_stability(bench, planted, masks=True, schedule=short, **FAST | {"halves": 2}, causes=["sentences"])
    (one,) = found.halves
    assert one.edges == sorted(edges_of(bench, FIRST)) and one.pi == [1.0] * 4 and one.core == 4
    assert one.alike is not None and one.alike.value == 1.0 and one.kept == 1.0
    assert one.consensus_minus_members is not None and one.consensus_minus_members.value == pytest.approx(0, abs=1e-6)
    assert one.baseline is not None and one.beyond is not None and found.baseline == "eap_ig"


@pytest.mark.long
@pytest.mark.parametrize("masks", [False, True])
def test_scores_of_noise_give_chance(bench: Workbench, masks: bool) -> None:
    """Masks that do not learn keep their start: one from all pairs would be the same for both halves."""
    size, total = 60, bench.subject.graph.n_edges
    still = Schedule(2, 0.0, start_sparsity=None)
    given = {"method": Method.of(noise), "masks": masks, "schedule": still, "baseline": None}
    found = measure_stability(
        bench, circuit_of(bench, size), **given, **FAST | {"halves": 8, "pairs": 0}, causes=["pairs"]
    )
    (one,) = found.halves
    assert one.alike is not None and abs(one.alike.value or 0) < 0.1
    assert one.shared == pytest.approx(size**2 / total, rel=0.25) and one.core <= one.bound
    assert one.members_kl is None


def test_a_half_sees_its_own_pairs_alone(bench: Workbench) -> None:
    rows = [5, 17, 40, 41]
    half = bench.on(rows)
    batch = half.data.train.collate(range(4))
    assert batch.index.tolist() == rows and [half.data.splits.train[0]] == [bench.data.splits.train[5]]
    whole = bench.data.train.collate(rows)
    assert torch.equal(batch.clean, whole.clean) and torch.equal(batch.group, whole.group)
    torch.testing.assert_close(bench.references(batch).teacher, bench.references.compute(whole).teacher)
    seen = [
        row for number, rows in zip(range(6), half.data.train_dataloader(), strict=False) for row in rows.index.tolist()
    ]
    assert set(seen) == set(rows)
    method = Method.of(eap_ig, steps=2)
    torch.testing.assert_close(half.score(method).values, bench.score(method, rows).values)
    torch.testing.assert_close(Resampler(half, method)(range(4)).values, half.score(method).values)
    mean = replace(bench, references=bench.ablated(Ablation("mean", positional=True)))
    own = mean.on(rows).references.mean
    assert own is not None and mean.references.mean is not None
    assert own.embed.shape == mean.references.mean.embed.shape and not torch.equal(
        own.embed, mean.references.mean.embed
    )


@pytest.mark.long
def test_what_is_there_is_not_found_again(bench: Workbench, tmp_path: Path) -> None:
    given = {"masks": True, "schedule": replace(SCHEDULE, steps=3), "baseline": None, "folder": tmp_path}
    run = partial(measure_stability, bench, circuit_of(bench, 20), **given, **FAST)
    first = run(causes=["sentences"])
    assert len(list(tmp_path.glob("*.json"))) == 6
    content = json.loads((tmp_path / "sentences_1_0.json").read_text())["content"]
    assert len(content["edges"]) == 20 and len(content["kl"]) == 8
    (tmp_path / "sentences_1_0.json").unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert run(causes=["sentences"]) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}.items() >= stamps.items()


@pytest.mark.long
def test_masks_are_trained_at_the_precision_of_training(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: scores and KLs are at that of the process."""
    seen: list[str] = []
    own = finding.fit

    def watched(*args: Any, **more: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return own(*args, **more)

    monkeypatch.setattr(finding, "fit", watched)
    given = {"masks": True, "schedule": replace(SCHEDULE, steps=2), "baseline": None, "causes": ["seed"]}
    before = torch.get_float32_matmul_precision()
    measure_stability(replace(bench, precision="medium"), circuit_of(bench, 20), **given, **FAST)
    assert seen == ["medium", "medium"] and torch.get_float32_matmul_precision() == before
    measure_stability(bench, circuit_of(bench, 20), **given, **FAST)
    assert seen[2:] == [before, before]


def test_what_cannot_be_said_is_not_said(bench: Workbench) -> None:
    circuit, method = circuit_of(bench, 20), Method.of(eap_ig, steps=1)
    found = measure_stability(bench, circuit, method=method, **FAST, causes=["seed", "start", "ablation"])
    assert [one.reason is None for one in found.causes] == [False, False, True] and found.causes[2].n_circuits == 3
    few = bench.on(range(3))
    assert "too few" in (
        measure_stability(few, circuit, method=method, **FAST, causes=["pairs"]).halves[0].reason or ""
    )
    with pytest.raises(UserError, match="file names x; give"):
        measure_stability(bench, circuit)
    with pytest.raises(UserError, match="not some of"):
        measure_stability(bench, circuit, method=method, causes=["weather"])
    with pytest.raises(UserError, match="at least 2"):
        measure_stability(bench, circuit, method=method, halves=1)
