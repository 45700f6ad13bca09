"""The trust card: states by hand, parts that are made once, the verb on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, settings
from planted_rivals import first_circuit, planted_rivals

from circuitlit import FoundCircuit, Outcome, TrustCard, UserError
from circuitlit.evaluate.agreement import Agreements
from circuitlit.evaluate.model_errors import ModelErrors
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust import card
from circuitlit.evaluate.trust.card import measure_trust
from circuitlit.evaluate.trust.row import Side, TrustRow
from circuitlit.evaluate.trust.rows import error_rows
from circuitlit.lock import claimed_cell
from circuitlit.report.trust import interval_picture, measured_on, trust_cells

FAST = ["logger=none", "trust.errors.least=1", "trust.errors.pairs=null", "trust.ablations.steps=2"]


@pytest.mark.parametrize(
    ("low", "high", "side", "state"),
    [
        (0.6, 0.9, "at least", "pass"),
        (0.2, 0.5, "at least", "fail"),
        (0.5, 0.7, "at least", "undecided"),
        (0.2, 0.5, "at most", "pass"),
        (0.7, 0.9, "at most", "fail"),
        (0.5, 0.7, "at most", "undecided"),
        (-0.5, 0.5, "within", "pass"),
        (-0.9, -0.7, "within", "fail"),
        (0.7, 0.9, "within", "fail"),
        (-0.7, 0.1, "within", "undecided"),
    ],
)
def test_the_state_goes_by_the_interval(low: float, high: float, side: Side, state: str) -> None:
    middle = (low + high) / 2
    row = TrustRow.of("a.b", "share", Estimate(middle, low, high), 0.6, side=side, pairs=9)
    assert (row.state, row.low, row.high, row.pairs) == (state, low, high, 9)
    wide = TrustRow.of("a.b", "share", Estimate(middle, low, high, -1.0, 1.0), 0.6, side=side)
    assert wide.state == "undecided" and (wide.low, wide.high) == (-1.0, 1.0)  # new sentences decide
    assert TrustRow.of("a.b", "share", Estimate(middle, low, high)).state == "shown"


def test_without_an_interval_that_says_something_nothing_passes_or_fails() -> None:
    """A single pair has none, and that of pairs does not stand for that of new sentences where these are several."""
    high, low = Estimate(0.9, 0.8, 1.0), Estimate(0.2, 0.1, 0.3)
    for found, state in ((high, "pass"), (low, "fail")):
        assert TrustRow.of("a.b", "share", found, 0.6, pairs=9, sentences=1).state == state
        for said, more in (("one pair", {"pairs": 1}), ("no interval for new sentences", {"pairs": 9, "sentences": 8})):
            row = TrustRow.of("a.b", "share", found, 0.6, **more)
            assert row.state == "undecided" and said in row.why and row.value == found.value
            assert TrustRow.of("a.b", "share", found, **more).state == "shown"


def test_errors_of_one_sentence_say_nothing_of_others() -> None:
    """Without that sentence there is no error to agree with; with a second one there is an interval, and it is wide."""
    group, nothing = torch.arange(80) % 8, torch.zeros(80)

    def row(wrong: torch.Tensor, least: int = 9) -> dict[str, TrustRow]:
        margin, one = torch.where(wrong, -1.0, 1.0), torch.ones(80, dtype=torch.long)
        right = (margin > 0).float()
        said = Outcome(nothing, margin, nothing, right, right, group, best_right=one, best_wrong=2 * one, margin=margin)
        made = Agreements.of(said, said, least=least)
        names = dict.fromkeys(("task", "model", "method", "ablation"), "x")
        assert made.vocabulary is not None
        counts = {"n_pairs": 80, "n_run": 80, "n_sentences": 8, "least": least}
        found = ModelErrors(**names, **counts, vocabulary=made.vocabulary, candidates=made.candidates)
        return {one.name: one for one in error_rows(found)}

    single = row(group == 0)
    assert single["errors.wrong"].state == "undecided" and "new sentences" in single["errors.wrong"].why
    assert single["errors.right"].state == "pass" and single["errors.wrong"].value == 1
    assert row(group < 2)["errors.wrong"].state == "pass"
    few = row(group < 7, 11)["errors.right"]  # as errors are
    assert (few.state, few.why) == ("not measured", "the model is right on 10 pairs, 11 right answers are needed")


def test_what_is_not_measured_says_why() -> None:
    row = TrustRow.of("a.b", "share", None, 0.6, why="not measurable: the model errs on 3 of 90 pairs")
    why = "not measured: the model errs on 3 of 90 pairs"
    assert trust_cells(row) == ("a.b", "share", "-", "at least 0.6", why)
    assert TrustRow.of("a.b", "share", Estimate(), 0.6).why


@pytest.mark.long
def test_the_verb_makes_each_part_once(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*settings(local, tmp_path / "run", "logger=none", "method=eap"), verb="attribute")
    found = FoundCircuit.load(tmp_path / "run")
    assert (
        found.agreement is not None
        and found.agreement.candidates is not None
        and found.agreement.vocabulary is not None
    )
    assert (found.agreement.candidates.reason or "").endswith("50 errors are needed")
    trust = [
        *settings(local, tmp_path / "card", *FAST, f"circuit={tmp_path}/run"),
        f"trust.errors.baseline={tmp_path}/run",
    ]
    call(*trust, "trust.only=[errors,ablations]", verb="trust")
    first = TrustCard.load(tmp_path / "card")
    assert (
        {name.split(".")[0] for name in first.trust} == {"errors", "ablations"}
        and len(first.trust) == 9
        and first.trust["ablations.zero"].bar
    )
    assert first.n_edges == found.n_edges
    beaten = first.trust["errors.biased"]
    assert beaten.value == 0 or beaten.why  # by itself, with a bias of its own agreement
    printed = capsys.readouterr().out
    assert "errors.wrong" in printed and "errors.wrong" in (tmp_path / "card" / "trust.html").read_text().replace(
        "<wbr>", ""
    )

    def again(*args: object, **more: object) -> None:
        raise AssertionError("this part is there")

    parts = {
        name: (kind, again if name == "errors" else work, *rest) for name, (kind, work, *rest) in card.PARTS.items()
    }
    monkeypatch.setattr(card, "PARTS", parts)
    call(*trust, "trust.only=[errors,generalises]", "trust.generalises.front=w1 w2", verb="trust")
    second = TrustCard.load(tmp_path / "card")
    assert {k: v for k, v in second.trust.items() if k.startswith("errors")} == {
        k: v for k, v in first.trust.items() if k.startswith("errors")
    }
    assert second.trust["generalises.words"].state == "not measured"
    assert second.trust["generalises.length"].value is not None
    call(*trust, "trust.only=[errors]", "trust.errors.most=3", verb="trust")  # other settings: it is made, and fails
    row = json.loads((tmp_path / "card" / "trust.json").read_text())["trust"]["errors"]
    assert row["state"] == "not measured" and "this part is there" in row["why"]


def test_the_verb_finds_the_circuit_again(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path / "run", "logger=none", "method=eap"), verb="attribute")
    card = settings(local, tmp_path / "card", "logger=none", f"circuit={tmp_path}/run", "trust.only=[stable]")
    call(*card, "trust.stable.resamples=4", "trust.stable.halves=2", verb="trust")  # by eap, as the file says
    rows = TrustCard.load(tmp_path / "card").trust
    core = rows["stable.core_pairs"]
    assert (
        "eap circuits of halves" in core.figure
        and core.draws == 8
        and core.value is not None
        and rows["stable.pairs"].value
    )
    assert "own" in rows["stable.core_sentences"].why and rows["stable.seed"].why == "eap has no seed"
    masks = ["trust.stable.by=masks", "mask.schedule.steps=2", "trust.stable.halves=2", "trust.stable.seeds=2"]
    call(*card, *masks, "trust.stable.pairs=4", "trust.stable.causes=[pairs,seed,start]", verb="trust")
    rows = TrustCard.load(tmp_path / "card").trust
    assert set(rows) == {
        f"stable.{name}" for name in ("core_pairs", "consensus_pairs", "pairs", "beyond_pairs", "seed", "start")
    }
    assert all(row.value is not None for row in rows.values()) and rows["stable.seed"].draws == 2
    assert "2 steps from mask_gradients" in rows["stable.core_pairs"].figure
    kept = {path.name for path in (tmp_path / "card" / "trust" / "stable").glob("*.json")}
    assert kept >= {f"pairs_{split}_{side}.json" for split in (0, 1) for side in (0, 1)} | {"start_equal.json"}


@pytest.mark.long
def test_parts_make_what_nobody_has_begun_and_their_sum_is_the_card(local: Path, tmp_path: Path) -> None:
    """A circuit that another process finds is neither waited for nor found; the card is that of one process."""
    call(*settings(local, tmp_path / "run", "logger=none", "method=eap"), verb="attribute")
    more = [
        "trust.only=[errors,stable,unique]",
        "trust.stable.by=masks",
        "trust.stable.halves=2",
        "trust.stable.seeds=2",
    ]
    more += ["mask.schedule.steps=2", "trust.stable.pairs=4", "trust.stable.causes=[pairs,seed]", *FAST]
    more += ["trust.unique.shares=[0]", "trust.unique.starts=[removed]", "trust.unique.control=false"]
    card, folder = [*settings(local, tmp_path / "card", *more), f"circuit={tmp_path}/run"], tmp_path / "card" / "trust"
    with claimed_cell(folder / "errors.json"), claimed_cell(folder / "stable" / "pairs_0_1.json"):
        call(*card, "trust.parts=2", "trust.part=0", verb="trust")
        assert not {"trust.json", "trust/errors.json", "trust/stable.json", "trust/unique.json"} & {
            str(path.relative_to(tmp_path / "card")) for path in (tmp_path / "card").rglob("*.json")
        }
        kept = {path.stem for path in (folder / "stable").glob("*.json")}
        assert kept == {"pairs_0_0", "pairs_1_0", "pairs_1_1", "seed_0", "seed_1"}
        assert {path.stem for path in (folder / "unique").glob("*.json")} >= {"free", "rival_0"}
    call(*card, "trust.parts=2", "trust.part=1", verb="trust")
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert folder / "errors.json" in stamps and folder / "stable" / "pairs_0_1.json" in stamps
    call(*card, verb="trust")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    call(*settings(local, tmp_path / "whole", *more), f"circuit={tmp_path}/run", verb="trust")
    shared, whole = (TrustCard.load(tmp_path / name).trust for name in ("card", "whole"))
    assert {name: row.value for name, row in shared.items()} == {name: row.value for name, row in whole.items()}
    assert all(row.value is not None or row.why for row in whole.values()) and whole["unique.u"].value is not None


def test_the_verb_perturbs_a_share_of_the_pairs(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On any folder of weights, so that a model before tuning and after it are asked the same."""
    call(*settings(local, tmp_path / "run", "logger=none", "method=eap"), verb="attribute")
    card = settings(local, tmp_path / "card", "logger=none", f"circuit={tmp_path}/run", "trust.only=[robust]")
    card += ["trust.robust.resamples=4", "trust.robust.draws=2", "trust.robust.pairs=4", "trust.robust.shares=[0.5]"]
    call(*card, "trust.robust.kinds=[noise,swapped]", verb="trust")
    rows = TrustCard.load(tmp_path / "card").trust
    names = [
        f"{kind}_{share}{end}" for kind in ("noise", "swapped") for share in (50, 100) for end in ("", "_beside", "_kl")
    ]
    # the prompts of this file's pairs have next to no word in common
    assert list(rows) == [f"robust.{name}" for name in names] or "too few to halve" in rows["robust.noise_100"].why
    swapped = rows["robust.swapped_50"]
    assert swapped.value is not None and swapped.draws == 4 and "50% swapped" in swapped.figure
    assert rows["robust.swapped_50_kl"].pairs == 4 and rows["robust.swapped_100_beside"].bar == 0
    printed, page = capsys.readouterr().out, (tmp_path / "card" / "trust.html").read_text()
    assert "robust.swapp" in printed and page.replace("<wbr>", "").count("robust.swapped_50") == 3


def test_any_file_of_a_circuit_has_a_card(local: Path, tmp_path: Path) -> None:
    """One of another tool does not say how it was found: that row is not measured, the others are."""
    call(*settings(local, tmp_path / "run", "logger=none", "method=eap"), verb="attribute")
    found = FoundCircuit.load(tmp_path / "run")
    assert found.trust is not None and {"preserved.kl", "chance.random"} <= set(found.trust)
    assert found.trust["preserved.kl"].value == pytest.approx(found.kl.value if found.kl else None)
    assert "How sure is this circuit?" in (tmp_path / "run" / "report.html").read_text()
    file = tmp_path / "theirs.json"
    call(*settings(local, tmp_path / "out", f"circuit={tmp_path}/run", "format=mib_json", f"out={file}"), verb="export")
    content = json.loads(file.read_text())
    del content["circuitlit"]
    file.write_text(json.dumps(content))
    card = settings(local, tmp_path / "card", "logger=none", f"circuit={file}", "trust.only=[preserved,minimal,stable]")
    call(*card, "trust.minimal.random=20", "trust.minimal.knockouts=1", "trust.errors.pairs=null", verb="trust")
    rows = TrustCard.load(tmp_path / "card").trust
    assert rows["preserved.kl"].value == pytest.approx(found.trust["preserved.kl"].value)
    assert rows["stable"].state == "not measured" and "its file names theirs" in rows["stable"].why
    assert rows["minimal.idle"].value is not None and "<svg" in (tmp_path / "card" / "trust.html").read_text()


def test_settings_that_no_part_takes_are_refused() -> None:
    """Before anything is made: an unknown name was passed over, and a count of nothing gave a bare error."""
    bench = planted_rivals("gpt2", "one", 0, held_out=8)
    chain = first_circuit(bench, "one")
    for given, said in (
        ({"chanse": {"draws": 41}}, "there is no part chanse; take some of preserved, chance"),
        ({"chance": {"draw": 41}}, "settings of chance: there is no argument draw; take some of draws, pairs"),
        ({"chance": {"seed": 1}}, "there is no argument seed"),
        ({"chance": {"draws": 0}}, "settings of chance: draws=0 is too few, at least 1 is needed"),
        ({"preserved": {"pairs": -1}}, "pairs=-1 is too few"),
        ({"minimal": {"knockouts": -1}}, "knockouts=-1 is too few, at least 0"),
    ):
        with pytest.raises(UserError, match=said):
            measure_trust(bench, chain, only=["preserved"], settings=given)
    allowed = {"preserved": {"pairs": 4}, "minimal": {"knockouts": 0}, "robust": {"pairs": 0}, "stable": {"pairs": 0}}
    rows = measure_trust(bench, chain, only=["preserved"], settings=allowed | {"ablations": {"random": 0}}).trust
    assert rows["preserved.kl"].pairs == 4


def test_the_interval_is_drawn_against_the_bar() -> None:
    row = TrustRow.of("a.b", "share", Estimate(0.5, 0.0, 1.0), 0.25)
    assert 'd="M42.0 1V17"' in interval_picture(row) and 'd="M4.0 9.0H156.0"' in interval_picture(row)
    both = TrustRow.of("a.b", "share", Estimate(1.0, 0.95, 1.05), 0.1, side="within", around=1.0)
    assert (
        both.state == "pass"
        and interval_picture(both).count("<path") == 3
        and trust_cells(both)[3] == "within 0.1 of 1"
    )
    assert interval_picture(TrustRow(name="a", figure="b")) == ""


def test_a_row_says_how_many_pairs_and_sentences_it_stands_on() -> None:
    found = Estimate(0.5, 0.0, 1.0)
    assert measured_on(TrustRow.of("a.b", "share", found, pairs=1000, groups=12)) == "1,000 pairs of 12 sentences"
    assert measured_on(TrustRow.of("a.b", "share", found, pairs=64)) == "64 pairs"
    assert measured_on(TrustRow.of("a.b", "share", found)) == ""
