"""Rivals: both sizes exact, what one constraint does, verdicts by hand, planted second copies, the verb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from cli import call, settings
from conftest import tiny_batch, tiny_model
from planted_circuits import CONFIGS
from planted_rivals import BRANCH, CHAINS, SECOND, edges_of, first_circuit, planted_rivals

from circuitlit import (
    HardConcrete,
    MaskedLoss,
    MaskedModel,
    MaskLayout,
    MaskLearner,
    Outcome,
    References,
    Rivals,
    Schedule,
    SigmoidTopK,
    Subject,
    TrustCard,
    UserError,
    find_rivals,
    kl_divergence,
)
from circuitlit.discover.gates import Gates
from circuitlit.discover.overlap import OverlapLearner, held_apart, shifts
from circuitlit.evaluate.find import GATES, SCHEDULE
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust.planted_search import search_planted
from circuitlit.evaluate.trust.rival_search import RivalSearch, accepted
from circuitlit.evaluate.trust.rivals import PlantedSearch, Redundancy, RivalCircuit
from circuitlit.graph import Graph

FAMILIES = [HardConcrete(0.4), SigmoidTopK()]
SHORT = Schedule(24, 0.3, start_sparsity=0.5, warmup=0.5, harden=0.5, final_noise=0.1, hard=0.3)


def inside_of(size: int, count: int) -> torch.Tensor:
    found = torch.zeros(size, dtype=torch.bool)
    found[torch.randperm(size, generator=torch.Generator().manual_seed(1))[:count]] = True
    return found


@pytest.mark.parametrize("gates", FAMILIES, ids=lambda gates: gates.name)
@pytest.mark.parametrize("counts", [(10.0, 30.0), (0.0, 40.0), (40.0, 0.0), (0.5, 12.25)])
def test_both_expected_sizes_are_exact(gates: Gates, counts: tuple[float, float]) -> None:
    log_alpha = 3 * torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = inside_of(500, 40)
    parts = [part.nonzero()[:, 0] for part in (inside, ~inside)]
    moved = log_alpha + shifts(gates, log_alpha, parts, counts, 0.7, cut=False)
    for part, count in zip(parts, counts, strict=True):
        assert float(gates.open_probability(moved, 0.7)[part].sum()) == pytest.approx(count, abs=1e-10)
        apart = (moved - log_alpha)[part]
        assert float(apart.max() - apart.min()) < 1e-12  # one scalar in each part
    whole = (round(counts[0]), round(counts[1]))
    cut = log_alpha + shifts(gates, log_alpha, parts, whole, 0.7, cut=True)
    assert [int((cut[part] > gates.threshold).sum()) for part in parts] == list(whole)


def test_the_gradient_knows_both_shifts() -> None:
    gates, inside = HardConcrete(0.4), inside_of(60, 20)
    draw = torch.Generator().manual_seed(0)
    parts = [part.nonzero()[:, 0] for part in (inside, ~inside)]
    log_alpha = torch.randn(60, dtype=torch.float64, generator=draw)
    weight = torch.randn(60, dtype=torch.float64, generator=draw)

    def value(numbers: torch.Tensor) -> torch.Tensor:
        return (weight * (numbers + shifts(gates, numbers, parts, (5.0, 7.0), 1.0, cut=False))).sum()

    leaf = (log_alpha + shifts(gates, log_alpha, parts, (5.0, 7.0), 1.0, cut=False)).requires_grad_()
    (grad,) = torch.autograd.grad((weight * held_apart(gates, leaf, inside, 1.0)).sum(), leaf)
    for index in (int(parts[0][3]), int(parts[1][3])):
        step = torch.zeros_like(log_alpha)
        step[index] = 1e-5
        slope = (value(leaf.detach() + step) - value(leaf.detach() - step)) / 2e-5
        torch.testing.assert_close(grad[index], slope, rtol=1e-5, atol=1e-8)
    for part in parts:
        assert float(grad[part].sum()) == pytest.approx(0, abs=1e-12)  # what one gate gains, its own part loses


def parts_of(name: str = "gpt2") -> tuple[MaskedLoss, References]:
    subject = Subject(tiny_model(name))
    return MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), kl_divergence), References(
        subject, "interchange"
    )


def trained(learner: MaskLearner) -> MaskLearner:
    made = learner.configure_optimizers()
    for step in range(learner.schedule.steps):
        made["optimizer"].zero_grad()
        learner.masked_loss(tiny_batch(rows=4, seed=step % 3), step, 0).backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return learner


def test_with_all_edges_inside_it_is_the_plain_learner_bit_by_bit() -> None:
    loss, references = parts_of()
    total, count = loss.layout.size, loss.layout.size // 5
    start = torch.randn(total, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(total, dtype=torch.bool)
    held = OverlapLearner(loss, references, start, everywhere, (count, 0), SHORT, GATES, seed=3)
    plain = MaskLearner(loss, references, start, 1 - count / total, SHORT, GATES, 3, constraint_gradient=True)
    assert torch.equal(trained(held).log_alpha, trained(plain).log_alpha)


@pytest.mark.parametrize("common", [0, 7, 20])
def test_common_edges_are_exactly_as_many_in_masks_and_circuit(common: int) -> None:
    loss, references = parts_of("llama")
    total = loss.layout.size
    inside = inside_of(total, 20)
    start = torch.randn(total, generator=torch.Generator().manual_seed(0))
    learner = OverlapLearner(loss, references, start, inside, (common, 20 - common), SHORT, GATES)
    for step in (0, 10, 23):
        probability = learner.gates.open_probability(start + learner._shift(step), SHORT.noise(step))
        expected = learner.part_sizes(step)[0]
        if not SHORT.is_hard(step):
            assert float(probability[inside].sum()) == pytest.approx(expected, abs=1e-3)
    kept = trained(learner).kept() if common < 20 else learner.kept()
    assert (int((kept & inside).sum()), int(kept.sum())) == (common, 20)
    masks = learner.trained_masks()[0]
    assert torch.equal(masks.bool(), kept)
    assert (common < 20) or torch.equal(kept, inside)  # all in common: the circuit itself
    with pytest.raises(UserError, match="edges are not there"):
        OverlapLearner(loss, references, start, inside, (21, 0), SHORT)


def test_acceptance_goes_by_the_interval_and_by_exact_match() -> None:
    worse = Estimate(0.08, 0.06, 0.09, -5.0, 5.0)  # of few new sentences nothing is known; these sentences decide
    same, fewer, far_fewer = Estimate(0.0, -0.02, 0.02), Estimate(0.06, 0.04, 0.08), Estimate(0.08, 0.06, 0.1)
    assert accepted(worse, 0.1, same, 0.05) == "accepted"
    assert accepted(worse, 0.1, fewer, 0.05) == accepted(worse, 0.07, same, 0.05) == "undecided"
    assert accepted(worse, 0.1, far_fewer, 0.05) == accepted(worse, 0.05, same, 0.05) == "rejected"


@pytest.mark.parametrize(("pairs", "ours", "theirs"), [(200, 200, 190), (200, 190, 180), (20, 20, 19), (40, 38, 36)])
def test_a_rival_may_lose_just_what_is_allowed(pairs: int, ours: int, theirs: int) -> None:
    """One pair more is too many to accept; single precision made .05 of the pairs .0500000119."""
    search = search_of("gpt2", "one", starts=[])

    def says(right: int) -> Outcome:
        nothing = torch.zeros(pairs)
        return Outcome(nothing, nothing, nothing, nothing, (torch.arange(pairs) < right).float(), torch.arange(pairs))

    for right, state in ((theirs, "accepted"), (theirs - 1, "undecided"), (0, "rejected")):
        bed = SimpleNamespace(run=lambda kept, right=right: says(right), corrupted=says(0))
        asked = replace(search, measured=says(ours), choosing=cast(Any, bed), testing=cast(Any, bed))
        assert asked._best({"whole": search.inside}).state == state


def some(share: float, state: str) -> RivalCircuit:
    nothing = Estimate(0.0, 0.0, 0.0)
    return RivalCircuit(
        share=share,
        n_common=round(100 * share),
        start="whole",
        tried={},
        kl=nothing,
        worse=nothing,
        exact_match=nothing,
        lost=nothing,
        state=state,
        edges=[],
    )


def result(states: dict[float, str], **changes: Any) -> Rivals:
    nothing = Estimate(0.0, 0.0, 0.0)
    values: dict[str, Any] = {name: "x" for name in ("task", "model", "method", "ablation")}
    values |= {name: 100 for name in ("n_edges", "n_edges_total", "steps", "n_pairs", "n_sentences", "core")}
    values |= {name: nothing for name in ("kl", "exact_match", "corrupted_kl")}
    values |= {"edges": [], "hold": [], "hardest": {}, "cross": {}, "redundancy": None, "control": None}
    rivals = [some(share, state) for share, state in states.items()]
    made = {"rivals": rivals, "free": some(1.0, "accepted"), "starts": ["whole"], "bar": 0.1, "exact_bar": 0.05}
    return Rivals(**values | made | changes)


def test_verdicts_by_hand() -> None:
    unique = {1.0: "accepted", 0.95: "rejected", 0.75: "rejected", 0.5: "rejected", 0.25: "rejected", 0.0: "rejected"}
    found = PlantedSearch(found=True, edges_found=4, edges=4, kl=0.0, corrupted_kl=2.0, n_edges=9, n_edges_total=99)
    assert result(unique).verdict == "undecided" and "not tried" in result(unique).why
    assert result(unique, control=found).verdict == "unique"
    assert result(unique, control=replace(found, found=False)).verdict == "undecided"
    assert result(unique, control=found, free=some(0.6, "rejected")).verdict == "undecided"  # it lacks the power
    half = unique | {0.75: "accepted", 0.5: "accepted"}
    assert result(half).verdict == "core with alternatives" and result(half).u == 0.5
    open_end = half | {0.25: "undecided"}
    assert (result(open_end).verdict, result(open_end).u_low) == ("undecided", 0.25)
    assert result(unique | {0.0: "accepted"}, free=some(0.6, "rejected")).verdict == "several, rewired"
    small, large = Estimate(0.01, 0.0, 0.02), Estimate(2.0, 1.9, 2.1)
    backed = Redundancy(first=small, rival=small, both=large, ratio=large)
    assert result(unique | {0.0: "accepted"}, redundancy=backed).verdict == "several, redundant"
    damaged = replace(backed, first=large)
    assert result(unique | {0.0: "accepted"}, redundancy=damaged).verdict == "several, rewired"
    assert all(result(states).overturned_by for states in (unique, half, open_end))


def search_of(name: str, kind: str, seed: int = 0, **changes: Any) -> RivalSearch:
    bench = planted_rivals(name, kind, seed)
    first = first_circuit(bench, kind)
    given = {
        "schedule": replace(SCHEDULE, steps=40),
        "gates": GATES,
        "starts": ["whole"],
        "within": 0.02,
        "exact": 0.05,
    }
    return RivalSearch.of(
        replace(bench, count=first.n_edges), first, **given | {"draws": 2, "probe_pairs": 16, "seed": 0} | changes
    )


@pytest.mark.long
def test_the_other_copy_is_found_without_a_common_edge() -> None:
    search = search_of("gpt2", "two", starts=["removed"])
    rival = search.rival(0)
    assert rival.state == "accepted" and rival.edges == sorted(edges_of(search.bench, SECOND))
    assert rival.random_kl is not None and (rival.random_kl.value or 0) > 10 * search.bar


@pytest.mark.long
def test_what_shares_half_is_found_with_half_of_the_edges() -> None:
    search = search_of("gpt2", "half")
    rival = search.rival(2)
    assert rival.state == "accepted" and rival.edges == sorted(edges_of(search.bench, BRANCH))
    assert search.rival(4).edges == sorted(edges_of(search.bench, CHAINS["half"][0]))


@pytest.mark.long
def test_the_control_tells_a_search_that_trains_from_one_that_does_not() -> None:
    settings_of: dict[str, Any] = {"gates": GATES, "starts": ["removed"], "within": 0.02, "exact": 0.05}
    settings_of |= {"draws": 1, "probe_pairs": 16, "seed": 0}
    for steps, there in ((80, True), (6, False)):
        schedule = replace(SCHEDULE, steps=steps)
        found = search_planted(Graph(3, 4, 4), 4, torch.device("cpu"), {**settings_of, "schedule": schedule})
        assert (found.found, found.edges_found == found.edges) == (there, there)
        assert (found.kl < 0.1 * found.corrupted_kl) is there
    with pytest.raises(UserError, match="need three layers"):
        search_planted(Graph(2, 4, 2), 12, torch.device("cpu"), {**settings_of, "schedule": SCHEDULE})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("one", "unique"), ("two", "several, redundant"), ("both", "unique"), ("half", "core with alternatives")],
)
def test_planted_verdicts(name: str, kind: str, verdict: str, seed: int) -> None:
    bench = planted_rivals(name, kind, seed)
    circuit = first_circuit(bench, kind)
    found = find_rivals(bench, circuit, schedule=replace(SCHEDULE, steps=80), draws=1)
    print(name, kind, seed, found.verdict, found.u, found.why)
    assert found.verdict == verdict
    if kind == "one":
        corrupted = found.corrupted_kl.value or 0
        assert (found.rivals[-1].kl.value or 0) > corrupted / 2
    if kind == "two":
        assert set(found.rivals[-1].edges) == set(edges_of(bench, SECOND))
    if kind == "half":
        assert found.u == 0.5


@pytest.mark.long
def test_the_verb_keeps_what_it_found(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(*settings(local, tmp_path / "run", "logger=none", "method=eap", "sparsity.target=0.9"), verb="attribute")
    fast = ["logger=none", f"circuit={tmp_path}/run", "mask.schedule.steps=2", "rivals.starts=[removed]"]
    fast += ["rivals.shares=[0.5]", "rivals.precision=0.5", "rivals.draws=1"]
    call(*settings(local, tmp_path / "rivals", *fast), verb="rivals")
    found = Rivals.load(tmp_path / "rivals")
    assert {one.n_common for one in found.rivals} >= {found.n_edges, round(found.n_edges / 2)}
    for one in found.rivals:
        assert len(one.edges) == found.n_edges == len(found.edges) == len(found.hold)
        assert len(set(one.edges) & set(found.edges)) == one.n_common
    assert found.rivals[0].worse.value == 0 and found.rivals[0].edges == found.edges
    assert (
        found.verdict in capsys.readouterr().out
        and "Edges held longest" in (tmp_path / "rivals/rivals.html").read_text()
    )
    stored = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rivals" / "rivals").glob("*.json")}
    call(*settings(local, tmp_path / "rivals", *fast, "rivals.shares=[0.5,1.0]"), verb="rivals")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rivals" / "rivals").glob("*.json")}
    assert {name: again[name] for name in stored} == stored  # what was there is read
    assert json.loads((tmp_path / "rivals" / "rivals.json").read_text())["schema"]["name"] == "rivals"
    fast = [word.replace("rivals.", "trust.unique.") for word in fast]
    call(*settings(local, tmp_path / "card", *fast, "trust.only=[unique]"), verb="trust")
    card = TrustCard.load(tmp_path / "card").trust
    assert card["unique.u"].value == found.u and card["unique.core"].value == found.core / found.n_edges
    assert found.verdict in card["unique.u"].figure and card["unique.u"].state == "shown"
