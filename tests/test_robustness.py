"""Robustness: what perturbing does to a pair, which pairs it is, and circuits that must or must not bear it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model

from circuitlit import (
    Circuit,
    EdgeScores,
    Method,
    Pairs,
    Robustness,
    Subject,
    UserError,
    Workbench,
    eap,
    eap_ig,
    measure_robustness,
    measure_trust,
)
from circuitlit.discover.workbench import Ablation
from circuitlit.evaluate.find import SCHEDULE, prepare_bench
from circuitlit.evaluate.statistics import mean_of_halves
from circuitlit.evaluate.trust.again import Again
from circuitlit.evaluate.trust.identity import identity
from circuitlit.evaluate.trust.rows import robustness_rows
from circuitlit.model.planted import TOKENS, word_tokenizer
from circuitlit.objective import negative_metric
from circuitlit.tasks.encoded import EncodedPairs, Row
from circuitlit.tasks.perturb import KINDS, perturb

FAST: dict[str, Any] = {"draws": 3, "resamples": 3, "pairs": 4, "shares": [0.0, 0.3, 0.6]}
SENTENCES, EACH = 8, 3


def made(model: str = "gpt2") -> Workbench:
    """A random model in float64; eight sentences of three training pairs that differ from their twins in one word."""
    draw, rows = random.Random(0), []
    for split, count in (("train", SENTENCES), ("val", 1), ("test", 4)):
        for number in range(count):
            frame = draw.choices(range(TOKENS), k=7)
            for _ in range(EACH):
                one, two, answer, wrong = draw.sample(range(TOKENS), 4)
                texts = [" ".join(f"w{word}" for word in (*frame[:3], own, *frame[3:])) for own in (one, two)]
                said = {"answer": f" w{answer}", "wrong_answer": f" w{wrong}", "group": f"{split} {number}"}
                rows.append({"clean": texts[0], "corrupted": texts[1], **said, "split": split})
    subject = Subject(tiny_model(model, vocab_size=TOKENS), name="tiny", tokenizer=word_tokenizer())
    return prepare_bench(subject, Pairs.from_list(rows), 0.8, batch_size=4)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return made()


def circuit_of(bench: Workbench, size: int = 40) -> Circuit:
    scores = torch.rand(1, bench.subject.graph.n_edges, generator=torch.Generator().manual_seed(0))
    return Circuit.cut(EdgeScores(bench.subject.graph, scores, "x"), size)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_perturbed_pair_can_still_be_patched(bench: Workbench, kind: str) -> None:
    pairs = bench.data.train
    changed = perturb(pairs, kind, 1)
    assert changed == perturb(pairs, kind, 1)
    assert kind == "swapped" or changed != perturb(pairs, kind, 2)
    for new, old in zip(changed, pairs.rows, strict=True):
        assert new is not None and new.clean != new.corrupted
        assert (len(new.clean), len(new.corrupted)) == (len(old.clean),) * 2
        kept = {"clean": old.clean, "corrupted": old.corrupted}
        assert new._replace(**kept) == old and (new.clean, new.corrupted) != (old.clean, old.corrupted)


def test_each_kind_changes_what_it_says() -> None:
    rows = [Row((9, 1, 2, 3, 4, 5, 7), (9, 1, 2, 3, 4, 6, 7), (7, 8), 5, 0, -1, (0,) * 7)]
    rows += [Row((9, 20, 21, 22, 23, 24), (9, 20, 21, 22, 23, 25), (8,), 5, 0, -1, (0,) * 6)]
    rows += [Row((9, 30, 31), (9, 30, 32), (8,), 2, 0, -1, (0,) * 3)]
    pairs = EncodedPairs(rows, ("other", "end"))
    (noisy, *_), (mixed, _, alone), (swapped, *_) = (perturb(pairs, kind) for kind in ("noise", "mixed", "swapped"))
    assert noisy and mixed and swapped and alone is None  # no other prompt is as short
    places = [place for place in range(7) if noisy.clean[place] != rows[0].clean[place]]
    assert len(places) == 1 and 1 <= places[0] <= 4  # a fifth of four, neither the first token nor the cause
    assert noisy.clean[places[0]] == noisy.corrupted[places[0]] and noisy.clean[5:] == rows[0].clean[5:]
    assert mixed.clean == rows[0].clean and mixed.corrupted == (9, 20, 21, 22, 23, 25, 7)  # its own answer token
    assert (swapped.clean, swapped.corrupted) == (rows[0].corrupted, rows[0].clean)
    without = EncodedPairs([row._replace(corrupted=row.clean) for row in rows], ("other", "end"))
    assert perturb(without, "swapped") == [None] * 3 == perturb(without, "mixed")
    noisy = perturb(without, "noise")[0]
    assert noisy is not None and noisy.clean == noisy.corrupted != rows[0].clean


def test_the_spread_of_halves_is_that_of_the_whole() -> None:
    """Of a mean it is known: the standard error of all groups, however many halves there are."""
    draw = random.Random(0)
    groups = [draw.gauss(0, 1) for _ in range(10)]
    halves = [statistics.mean(half) for half in combinations(groups, 5)]
    found = mean_of_halves(halves, 10)
    error = statistics.stdev(groups) / 10**0.5
    assert found.value == pytest.approx(statistics.mean(groups)) and found.bounds is not None
    assert (found.bounds[1] - found.bounds[0]) / 2 == pytest.approx(2.2622 * error, rel=0.01)  # t, 9 degrees of freedom
    assert mean_of_halves([0.5, 0.5], 10).bounds == (0.5, 0.5)


@pytest.mark.parametrize("kind", ["interchange", "mean"])
def test_perturbed_pairs_stand_behind_the_others(bench: Workbench, kind: Any) -> None:
    bench = replace(bench, references=bench.ablated(Ablation(kind)))
    count, changed = len(bench.data.train), [row for row in perturb(bench.data.train, "mixed") if row]
    more, method = bench.with_more(changed), Method.of(eap_ig, steps=2)
    assert len(more.data.train) == 2 * count and more.data.train.n_groups == SENTENCES
    rows = [1, 5, 17]
    torch.testing.assert_close(more.on(rows).score(method).values, bench.on(rows).score(method).values)
    other = bench.on(rows)
    other.data.train = replace(other.data.train, rows=[changed[row] for row in rows], numbers=())
    made = replace(other, references=other.ablated(Ablation(kind)))
    expected = replace(made, references=made.fresh_references()).score(method).values  # not those kept of other pairs
    found = more.on([row + count for row in rows]).score(method).values
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, bench.on(rows).score(method).values)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        (Method.of(eap, negative_metric), list(KINDS)),
        pytest.param(Method.of(eap_ig, steps=2), ["noise"], marks=pytest.mark.slow),
    ],
)
def test_no_perturbed_pair_is_no_change_and_all_are_the_other_control(
    bench: Workbench, method: Method, kinds: list[str]
) -> None:
    found = measure_robustness(bench, circuit_of(bench), method=method, kinds=kinds, **FAST)
    assert len(found.perturbed) == len(kinds) * 4 and found.n_sentences == SENTENCES and found.n_halves == 3
    for one in found.perturbed:
        assert one.pairs == round(one.share * 12)
        if one.share == 0:
            assert (one.reason, one.alike, one.each) == ("no pair is perturbed at this share", None, [])
            continue
        assert one.alike and one.minus_replaced and one.kl_minus_replaced and one.beyond_degrees
    unperturbed = [
        row for row in robustness_rows(found) if row.name.removesuffix("_kl").removesuffix("_beside")[-2:] == "_0"
    ]
    assert len(unperturbed) == 3 * len(kinds)
    assert {(row.state, row.why) for row in unperturbed} == {("not measured", "no pair is perturbed at this share")}
    floor = [one.alike.value for one in found.perturbed if one.alike and one.share == 1]
    assert all(value is not None and value < 1 for value in floor)
    again = measure_robustness(bench, circuit_of(bench), method=method, **FAST)
    assert again.perturbed == found.perturbed[:4]  # of noise
    other = measure_robustness(bench, circuit_of(bench), method=method, **FAST, seed=1)
    assert other.perturbed[1:] != again.perturbed[1:]


def test_all_pairs_perturbed_is_the_circuit_of_perturbed_pairs(bench: Workbench) -> None:
    method, seen = Method.of(eap, negative_metric), []
    own = Again.made

    def watch(self: Again, asked: dict[str, list[int]], *more: Any) -> Any:
        made = own(self, asked, *more)
        seen.extend((name, rows, made[name]) for name, rows in asked.items())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Again, "made", watch)
        measure_robustness(bench, circuit_of(bench), method=method, kinds=["mixed"], **FAST)
    changed = [row for row in perturb(bench.data.train, "mixed") if row]
    count = len(changed)
    sized = replace(bench, count=40)
    for draw in range(3):
        own_rows = {name.split("_")[0]: [] for name, *_ in seen}
        for name, rows, circuit in seen:
            way, number, size = name.split("_")
            if int(number) == draw:
                own_rows[way].append((int(size), rows, circuit))
        ((_, intact, _),) = own_rows["intact"]
        spoilt = [{row - count for row in rows if row >= count} for _, rows, _ in own_rows["mixed"]]
        new = [set(rows) - set(intact) for _, rows, _ in own_rows["replaced"]]
        assert [len(rows) for rows in spoilt] == [size for size, *_ in own_rows["mixed"]] == [4, 7, 12]
        assert spoilt[0] < spoilt[1] < spoilt[2] == set(intact) and new[0] < new[1] < new[2]
        assert all(row // EACH not in {one // EACH for one in intact} for row in new[2])  # of other sentences
        assert [len(rows) for _, rows, _ in own_rows["replaced"]] == [12] * 3
        wholly = bench.on(intact)
        wholly.data.train = replace(wholly.data.train, rows=[changed[row] for row in intact], numbers=())
        fresh = replace(wholly, references=wholly.fresh_references())
        expected = sized.best(fresh.score(method)).flatten().nonzero()[:, 0].tolist()
        assert own_rows["mixed"][-1][2].edges == expected


def scored(by: str, loss: Any, references: Any, batches: Iterable[Any]) -> EdgeScores:
    """Scores that hear nothing of the pairs, or nothing but which tokens they have."""
    tokens = sorted(tuple(row) for batch in batches for row in batch.clean.tolist())
    draw = torch.Generator().manual_seed(0 if by == "deaf" else hash(tuple(tokens)) % 2**31)
    return EdgeScores(loss.layout.graph, torch.rand(1, loss.layout.graph.n_edges, generator=draw), by)


@pytest.mark.parametrize(("by", "alike"), [("deaf", 1.0), ("noise", 0.0)])
def test_the_controls_tell_a_method_that_hears_nothing(bench: Workbench, by: str, alike: float) -> None:
    given = FAST | {"draws": 8, "pairs": 0, "shares": [0.5]}
    found = measure_robustness(bench, circuit_of(bench, 100), method=Method(by, partial(scored, by)), **given)
    half, whole = found.perturbed
    for one in (half, whole):  # wholly perturbed pairs give the same: that an overlap is high says nothing
        assert one.alike and one.replaced and one.minus_replaced and one.kl is None
        assert one.alike.value == pytest.approx(alike, abs=0.08)
        assert one.replaced.value == pytest.approx(alike, abs=0.08)
        assert one.minus_replaced.bounds and one.minus_replaced.bounds[0] <= 0 <= one.minus_replaced.bounds[1]
    rows = robustness_rows(found)
    assert [row.name for row in rows[:3]] == ["robust.noise_50", "robust.noise_50_beside", "robust.noise_50_kl"]
    assert rows[2].why == "no test pairs were asked for" and rows[0].groups == SENTENCES and rows[0].draws == 8


def test_a_share_that_rounds_to_no_pair_is_not_measured(bench: Workbench) -> None:
    """Circuits of the same pairs are equal, which says nothing of perturbed ones."""
    given = FAST | {"draws": 2, "resamples": 2, "pairs": 0, "shares": [0.04, 0.1]}
    found = measure_robustness(bench, circuit_of(bench), method=Method.of(eap, negative_metric), **given)
    assert [(one.pairs, one.alike is None) for one in found.perturbed] == [(0, True), (1, False), (12, False)]


def test_masks_are_trained_on_perturbed_pairs_and_kept(bench: Workbench, tmp_path: Path) -> None:
    bench = prepare_bench(
        Subject(tiny_model("llama", vocab_size=TOKENS).float(), tokenizer=word_tokenizer()), bench.data.splits, 0.8
    )
    given = FAST | {"masks": True, "schedule": replace(SCHEDULE, steps=3), "shares": [0], "draws": 2}
    found = measure_robustness(bench, circuit_of(bench), **given, kinds=["swapped"], folder=tmp_path)
    assert [len(one.each) for one in found.perturbed] == [0, 2]
    files = {path.name for path in tmp_path.glob("*.json")}
    assert files == {f"{way}_{n}_{size}.json" for n in (0, 1) for way in ("swapped", "replaced") for size in (12,)} | {
        "intact_0_0.json",
        "intact_1_0.json",
    }
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert measure_robustness(bench, circuit_of(bench), **given, kinds=["swapped"], folder=tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == stamps
    found.save(tmp_path / "out")
    assert Robustness.load(tmp_path / "out") == found and len(found.to_frame()) == 2


@pytest.mark.long
def test_parts_are_kept_only_for_the_same_weights_and_batches(tmp_path: Path) -> None:
    """The number of pairs in a batch is nothing to what is measured on the circuit as it is."""
    given = FAST | {"masks": True, "schedule": replace(SCHEDULE, steps=1), "shares": [0], "draws": 2, "pairs": 0}
    ablations = {"kinds": ["zero"], "pairs": 2, "random": 1, "random_pairs": 2}
    subject = Subject(tiny_model("llama", vocab_size=TOKENS).float(), tokenizer=word_tokenizer(), name="tiny")

    def stamps(batch_size: int) -> dict[str, int]:
        bench = prepare_bench(subject, made().data.splits, 0.8, batch_size=batch_size)
        settings = {"robust": given | {"kinds": ["swapped"]}, "ablations": ablations}
        measure_trust(bench, circuit_of(bench), only=list(settings), settings=settings, folder=tmp_path)
        return {path.stem: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}

    first, again, other = stamps(4), stamps(4), stamps(2)
    assert first == again and {name for name in first if other[name] == first[name]} == {"ablations"}
    with torch.no_grad():
        subject.model.get_output_embeddings().weight[-1] += 0.5
    assert not set(stamps(2).items()) & set(other.items())


def test_the_whole_ablation_is_what_a_part_depends_on(bench: Workbench) -> None:
    circuit = circuit_of(bench)

    def under(**settings: Any) -> dict[str, Any]:
        ablation = Ablation(**settings)
        return identity(replace(bench, references=bench.ablated(ablation), ablation=ablation), circuit)

    mean, optimal = under(kind="mean"), under(kind="optimal", steps=1)
    assert mean == under(kind="mean") == under(kind="mean", steps=3) != under(kind="mean", positional=True)
    assert optimal == under(kind="optimal", steps=1) != mean
    for other in ({"steps": 2}, {"lr": 0.1}, {"objective": negative_metric}):
        assert optimal != under(**{"kind": "optimal", "steps": 1, **other})


def test_what_cannot_be_asked_is_said(bench: Workbench) -> None:
    circuit, method = circuit_of(bench), Method.of(eap, negative_metric)
    with pytest.raises(UserError, match="not some of noise, mixed, swapped"):
        measure_robustness(bench, circuit, method=method, kinds=["weather"])
    with pytest.raises(UserError, match="not between 0 and 1"):
        measure_robustness(bench, circuit, method=method, shares=[10])
    with pytest.raises(UserError, match="at least 2"):
        measure_robustness(bench, circuit, method=method, draws=1)
    with pytest.raises(UserError, match="file names x; give"):
        measure_robustness(bench, circuit)
    few = measure_robustness(bench.on(range(9)), circuit, method=method, **FAST)
    assert "3 sentences of the training split are too few" in (few.perturbed[0].reason or "") and few.n_halves == 0
    assert {row.state for row in robustness_rows(few)} == {"not measured"}
