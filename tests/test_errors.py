"""Agreement on the model's right and wrong answers: values by hand, identities, a planted rule with exceptions."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import WORDS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from circuitlit import Circuit, EdgeScores, Pairs, UserError, Workbench, find_circuit, measure_errors, random_circuit
from circuitlit.discover.error_weight import for_errors
from circuitlit.evaluate.agreement import Agreements
from circuitlit.evaluate.find import SCHEDULE, prepare_bench
from circuitlit.evaluate.model_errors import ModelErrors, fit_bias
from circuitlit.evaluate.trust.rows import error_rows
from circuitlit.evaluate.verdict import Bars, held_out
from circuitlit.model import Subject
from circuitlit.objective import Outcome, best_candidates, kl_divergence, model_errs
from circuitlit.report.table import notes
from circuitlit.tasks.pair import Batch

TOKENS, RULED, EXCEPTIONS = 41, 20, 8


def said(margin: list[float], kl: float = 0.0) -> Outcome:
    """Outcomes whose candidates are tokens 1 (right) and 2."""
    values = torch.tensor(margin)
    nothing, right = torch.full_like(values, kl), (values > 0).float()
    one = torch.ones(len(values), dtype=torch.long)
    return Outcome(nothing, values, nothing, right, right, best_right=one, best_wrong=2 * one, margin=values)


def planted(local: Path, pairs: int = 160) -> Workbench:
    """A rule in the edge from input to logits, exceptions to it in the MLP: the model errs on eight of twenty words."""
    numbers = {"n_embd": 2 * TOKENS, "n_layer": 1, "n_head": 1, "vocab_size": TOKENS, "n_positions": 8, "n_inner": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **numbers, tie_word_embeddings=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight[:, :TOKENS] = torch.eye(TOKENS)
        head, mlp = model.lm_head.weight, model.transformer.h[0].mlp
        for word in range(RULED):  # word w is followed by word w + 20, its token is w + 1
            head[word + 1 + RULED, word + 1] = 1.0
        for word in range(EXCEPTIONS):
            wrong = word + 2 + RULED
            mlp.c_fc.weight[word + 1, word] = mlp.c_proj.weight[word, TOKENS + wrong] = 1.0
            head[wrong, TOKENS + wrong] = 1.0
    rows, draw = [], random.Random(0)
    for number in range(pairs):
        split, word = ("test", "test", "val", "train")[number % 4], number // 4 % RULED
        front = draw.sample(WORDS, 3)
        texts = [" ".join([*front, f"w{last}"]) for last in (word, EXCEPTIONS + (word + 1) % (RULED - EXCEPTIONS))]
        answers = {"answer": f" w{word + RULED}", "wrong_answer": f" w{(word + 1) % RULED + RULED}"}
        roles = {"last": [texts[0].rindex("w"), len(texts[0])]}
        rows.append({"clean": texts[0], "corrupted": texts[1], **answers, "split": split, "roles": roles})
    subject = Subject(model.double(), tokenizer=AutoTokenizer.from_pretrained(local / "model"))
    return prepare_bench(subject, Pairs.from_list(rows), 0.5)


def circuit(bench: Workbench, *without: str) -> Circuit:
    """All edges but some."""
    graph = bench.subject.graph
    scores = torch.ones(1, graph.n_edges)
    scores[0, [graph.edge_index(edge) for edge in without]] = -1.0
    made = EdgeScores(graph, scores, "planted", kind="effect")
    return Circuit.cut(replace(made, ranks_by_magnitude=False), graph.n_edges - len(without))


def test_candidates_by_hand() -> None:
    """Answer against wrong answer; the best of each side where there are choices; none without a wrong answer."""
    one = torch.zeros(3, dtype=torch.long)
    batch = Batch(
        index=one,
        group=one,
        clean=one[:, None],
        corrupted=one[:, None],
        lengths=one + 1,
        positions=one[:, None],
        answer=torch.tensor([[0], [1], [2]]),
        answer_mask=torch.ones(3, 1, dtype=torch.bool),
        contrast=one,
        wrong=torch.tensor([3, -1, -1]),
        roles=one[:, None],
        choices=torch.tensor([[0, 0, 0], [0, 1, 2], [0, 0, 0]]),
        signs=torch.tensor([[0, 0, 0], [1, 1, -1], [0, 0, 0]]),
    )
    logits = torch.tensor([1.0, 2.0, 5.0, 3.0]).expand(3, 1, 4)
    right, wrong, margin = best_candidates(logits, batch)
    assert right.tolist() == [0, 1, -1] and wrong.tolist() == [3, 2, -1]
    assert margin[:2].tolist() == [-2.0, -3.0] and bool(margin[2].isnan())


def test_agreement_by_hand() -> None:
    """Of six right answers the circuit has five, of four errors one."""
    full, ours = said([1.0] * 6 + [-1.0] * 4), said([1.0] * 5 + [-1.0] * 2 + [1.0] * 3, kl=0.5)
    found = Agreements.of(full, ours, least=4).candidates
    assert found is not None and (found.n_right, found.n_wrong) == (6, 4)
    values = {key: getattr(found, key).value for key in ("accuracy", "right", "wrong", "gap", "wrong_too", "kl_wrong")}
    expected = {"accuracy": 0.6, "right": 5 / 6, "wrong": 0.25, "gap": 5 / 6 - 0.25, "wrong_too": 0.25, "kl_wrong": 0.5}
    assert values == pytest.approx(expected)
    chance = 0.6 * 0.8 + 0.4 * 0.2
    assert found.kappa is not None and found.kappa.value == pytest.approx((0.6 - chance) / (1 - chance))


def test_too_few_errors_are_counted_and_not_measured() -> None:
    found = Agreements.of(said([1.0] * 95 + [-1.0] * 5), said([1.0] * 100)).candidates
    assert found is not None and found.right is not None and found.right.value == 1
    assert found.wrong is None and found.kappa is None
    assert found.reason == "not measurable: the model errs on 5 of 100 pairs, 50 errors are needed"


def test_errors_of_choices_may_differ() -> None:
    """Wrong as well, with another wrong choice, is no agreement."""
    full = said([-1.0] * 4)
    found = Agreements.of(full, replace(full, best_wrong=torch.tensor([2, 3, 3, 3])), least=1).candidates
    assert found is not None and found.wrong is not None and found.wrong_too is not None
    assert (found.wrong.value, found.wrong_too.value) == (0.25, 1.0)


def test_weights_stand_for_pairs() -> None:
    """A kind of which every other pair is taken, and weighs two, has the figures of all pairs."""
    margins, ours = [1.0] * 8 + [-1.0] * 4, [1.0] * 6 + [-1.0] * 2 + [-1.0, -1.0, 1.0, 1.0]
    whole = Agreements.of(said(margins), said(ours), least=1).candidates
    rows = torch.tensor([0, 2, 4, 6, 8, 9, 10, 11])
    weights = torch.tensor([2.0] * 4 + [1.0] * 4)
    part = Agreements.of(said(margins).rows(rows), said(ours).rows(rows), weights, least=1).candidates
    assert whole is not None and part is not None
    for key in ("accuracy", "right", "wrong", "kappa"):
        assert getattr(part, key).value == pytest.approx(getattr(whole, key).value)


def test_bias_leaves_the_agreement_with_right_answers() -> None:
    """The circuit keeps three of four right answers: so does the baseline under the bias, and no more."""
    full, ours = said([2.0] * 4 + [-2.0]), said([1.0, 1.0, 1.0, -1.0, -1.0])
    baseline = said([0.5, 1.0, 3.0, 4.0, 0.7])
    bias = fit_bias(full, ours, baseline)
    assert 0.5 < bias < 1.0
    shifted = replace(baseline, margin=baseline.margin - bias)
    found = Agreements.of(full, shifted, least=1).candidates
    assert found is not None and found.right is not None and found.right.value == pytest.approx(0.75)
    assert fit_bias(full, full, baseline) < 0.5  # all four


def test_a_planted_exception_is_lost_without_its_edges(local: Path) -> None:
    bench = planted(local)
    whole, rule = circuit(bench), circuit(bench, "input->m0", "m0->logits")
    full = measure_errors(bench, whole, least=20, most=25, baseline=rule)
    assert full.candidates is not None and full.candidates.n_wrong == 25  # of 32
    for row in (full.candidates, full.vocabulary):
        values = {key: getattr(row, key).value for key in ("right", "wrong", "gap", "kappa", "kl_wrong")}
        assert values == pytest.approx({"right": 1, "wrong": 1, "gap": 0, "kappa": 1, "kl_wrong": 0}, abs=1e-6)
        assert row.accuracy is not None and row.accuracy.value == pytest.approx(48 / 80)
    assert (
        full.biased is not None and full.biased.agreement.right is not None and full.biased.agreement.right.value == 1
    )
    assert full.biased.beaten_by is not None and full.biased.beaten_by.value == 1
    assert {word.word for word in full.words} <= {f"w{word}" for word in range(EXCEPTIONS)}
    idealised = measure_errors(bench, rule, least=20)
    assert idealised.candidates is not None and idealised.candidates.n_wrong == 32
    values = {key: getattr(idealised.candidates, key).value for key in ("right", "wrong", "gap", "wrong_too", "kappa")}
    assert values == pytest.approx({"right": 1, "wrong": 0, "gap": 1, "wrong_too": 0, "kappa": 0})
    assert idealised.matched is not None and idealised.matched.n == 0 and idealised.matched.reason


def test_the_reason_for_no_biased_baseline_is_the_true_one(local: Path) -> None:
    bench = planted(local)
    whole = circuit(bench)

    def why(baseline: Circuit | None = whole, least: int = 20) -> str:
        found = measure_errors(bench, whole, least=least, baseline=baseline)
        row = next(row for row in error_rows(found) if row.name == "errors.biased")
        assert (row.state == "not measured") == bool(row.why)
        return row.why

    assert why() == "" and "name one" in why(None)
    assert why(least=40) == "not measurable: the model errs on 32 of 80 pairs, 40 errors are needed"
    data = bench.data
    val, data.val = data.val, replace(data.val, rows=[], groups=(), numbers=())
    assert why().endswith("has no validation pairs to fit a bias on")
    data.val, data.test = val, replace(data.test, rows=[row._replace(wrong=-1) for row in data.test.rows])
    assert why() == "pairs have no wrong answer" == why(None)


def test_no_fewer_pairs_are_drawn_than_are_needed(local: Path) -> None:
    """Of six errors two would be run, and the six said to be fewer than five."""
    with pytest.raises(UserError, match="most=2 pairs of a kind are run, and least=5 errors are needed; give most=5"):
        measure_errors(planted(local), circuit(planted(local)), most=2, least=5)


def test_both_agreements_make_up_the_exact_match(local: Path, tmp_path: Path) -> None:
    """Over the vocabulary, weighted by how often the model is right and wrong."""
    bench = planted(local)
    graph = bench.subject.graph
    kept = random_circuit(graph, graph.n_edges // 2, 3)
    found = measure_errors(bench, Circuit.cut(EdgeScores(graph, kept.float(), "random"), graph.n_edges // 2), least=1)
    row = found.vocabulary
    assert row.right is not None and row.wrong is not None and row.accuracy is not None
    match = float(held_out(bench).run(kept).exact_match.mean())
    share = row.accuracy.value or 0
    assert share * (row.right.value or 0) + (1 - share) * (row.wrong.value or 0) == pytest.approx(match)
    assert ModelErrors.load(found.save(tmp_path)) == found
    assert len(found.to_frame()) == 2
    with pytest.raises(UserError, match="no pairs in a split new_words"):
        measure_errors(bench, circuit(bench), split="new_words")


def test_error_weight_is_the_errors_share_of_the_loss(local: Path) -> None:
    """Losses of 1 add up to 1, errors to their share; the objective stays what it is without one."""
    bench = planted(local)

    def one(logits: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
        return torch.ones(len(batch))

    assert for_errors(bench, one, None) is one
    train = bench.data.train
    batch = train.collate(range(len(train)))
    teacher = bench.subject.logits(batch.clean, batch.positions).log_softmax(-1)
    errs, losses = model_errs(teacher, batch), for_errors(bench, one, 0.7)(teacher, teacher, batch)
    assert int(errs.sum()) == 16 and len(errs) == 40
    assert float(losses.sum() / 40) == pytest.approx(1) and float(losses[errs].sum() / 40) == pytest.approx(0.7)
    with pytest.raises(UserError, match="error_weight=1\\.5 is not a share"):
        for_errors(bench, one, 1.5)
    few = planted(local, 60)  # 15 training pairs, of which the model errs on the first 8
    with pytest.raises(UserError, match="errs on 8 of 15 training pairs, at least 10"):
        for_errors(few, one, 0.5)


def test_the_weight_decides_which_two_edges_are_better(local: Path) -> None:
    """Two edges suffice for the exceptions, or for the rule and an idle edge."""
    bench = planted(local)
    graph, batch = bench.subject.graph, bench.data.train.collate(range(len(bench.data.train)))
    masks = torch.zeros(2, graph.n_edges)
    for row, edges in enumerate((("input->logits", "input->m0"), ("m0->logits", "input->m0"))):
        masks[row, [graph.edge_index(edge) for edge in edges]] = 1.0
    for weight, better in ((0.02, 0), (0.98, 1)):
        loss = bench.loss(for_errors(bench, kl_divergence, weight))
        values = [float(loss(row, batch, bench.references(batch))) for row in masks]
        assert values[better] < values[1 - better]


def test_training_and_page_know_of_errors(local: Path) -> None:
    bench, bars = planted(local), Bars(controls=1, smoke=True)
    more = {"schedule": replace(SCHEDULE, steps=4), "bars": bars}
    found, plain = (find_circuit(bench.subject, bench.data, 0.8, error_weight=weight, **more) for weight in (0.9, None))
    assert [row["loss"] for row in found.live.curves] != [row["loss"] for row in plain.live.curves]
    assert found.agreement is not None and found.agreement.candidates is not None
    reason = found.agreement.candidates.reason
    assert reason == "not measurable: the model errs on 32 of 80 pairs, 50 errors are needed"
    said = " ".join(notes(found.to_dict()))
    assert "Between right and wrong candidates the circuit says the same as the model" in said and reason in said
