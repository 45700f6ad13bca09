"""What a circuit does, as its page shows it: identities of examples and effects, and heads that are known."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import call, settings
from planted import TOKENS, planted
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitlit import (
    Ablation,
    Circuit,
    EdgeScores,
    Explanation,
    Method,
    Pairs,
    TestBed,
    Workbench,
    eap_ig,
    explain_circuit,
    load_subject,
)
from circuitlit.evaluate.find import prepare_bench
from circuitlit.graph.select import edges_from
from circuitlit.heads.explain.effects import estimated_effects, node_effects, random_nodes, whole_model
from circuitlit.heads.explain.examples import show_examples
from circuitlit.heads.explain.explanation import Likely
from circuitlit.masked.ablation import Kind
from circuitlit.report import write_page
from circuitlit.report.leading import leading_sentences
from circuitlit.tasks.tokens import token_texts


@pytest.fixture(scope="module")
def bench(local: Path) -> Workbench:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    return prepare_bench(load_subject(local / "model"), Pairs.from_list(rows), 0.7)


@pytest.fixture(scope="module")
def circuit(bench: Workbench) -> Circuit:
    return bench.cut(bench.score(Method.of(eap_ig, steps=2)))


def stock(bench: Workbench, ids: list[int]) -> list[Likely]:
    """The likeliest next tokens of the stock model."""
    with torch.no_grad():
        found = bench.subject.model(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(5)
    words = token_texts(bench.subject.tokenizer, found.indices.tolist()[:1], ids[-1])
    words += [token_texts(bench.subject.tokenizer, [one], ids[-1])[0] for one in found.indices.tolist()[1:]]
    return [Likely(token=word, probability=p) for word, p in zip(words, found.values.tolist(), strict=True)]


def same(found: list[Likely], expected: list[Likely]) -> None:
    assert [one.token for one in found] == [one.token for one in expected]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], rel=1e-4)


def test_the_ends_are_the_stock_model_on_the_clean_and_on_the_corrupted_prompt(
    bench: Workbench, circuit: Circuit
) -> None:
    whole, none = torch.ones_like(circuit.kept), torch.zeros_like(circuit.kept)
    for kept, side in ((whole, "clean"), (none, "corrupted")):
        for one in show_examples(bench, replace(circuit, kept=kept), [0, 3]):
            row = bench.data.test.rows[one.pair]
            same(one.full, stock(bench, list(row.clean)))
            same(one.ablated, stock(bench, list(row.corrupted)))
            same(one.circuit, stock(bench, list(getattr(row, side))))
            assert one.roles[-1] == "end" and len(one.roles) == len(one.clean) == len(one.corrupted)
            assert any(one.changed) and one.answer and one.wrong


def test_tokens_put_together_are_the_prompt(bench: Workbench) -> None:
    ids = list(bench.data.test.rows[0].clean)
    assert "".join(token_texts(bench.subject.tokenizer, ids)) == bench.subject.tokenizer.decode(ids)  # type: ignore[union-attr]
    assert token_texts(None, ids) == [str(one) for one in ids]


def test_an_explanation_is_saved_loaded_and_shown(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path / "run", "logger=none", "explain.examples=2"))
    found = Explanation.load(tmp_path / "run")
    assert len(found.examples) == 2 == len(found.to_frame())
    page = write_page(tmp_path / "run").read_text()
    assert all(f">{token.strip()}</span>" in page for token in found.examples[0].clean)
    call(*settings(local, tmp_path / "more", f"circuit={tmp_path}/run", "explain.examples=4"), verb="explain")
    assert len(Explanation.load(tmp_path / "more").examples) == len(Explanation.load(tmp_path / "run").examples) == 4
    assert write_page(tmp_path / "run").read_text().count('class="example"') == 4
    call(*settings(local, tmp_path / "without", "logger=none", "explain=null"))
    assert 'id="examples"' not in (tmp_path / "without" / "report.html").read_text()


def test_in_python_a_circuit_is_explained(bench: Workbench, circuit: Circuit, tmp_path: Path) -> None:
    found = explain_circuit(bench, circuit, examples=2)
    found.save(tmp_path)
    assert Explanation.load(tmp_path) == found


def test_the_estimate_is_the_slope_of_the_metric_in_an_edge_s_mask(bench: Workbench, circuit: Circuit) -> None:
    rows, graph = [0, 1, 2], bench.subject.graph
    effects = estimated_effects(bench, circuit, rows, 2)
    assert not effects[:, ~circuit.kept[0]].any()
    bed = TestBed.of(bench, bench.data.to_choose_on, rows)
    for edge in effects.sum(0).abs().argsort(descending=True)[:3].tolist():
        here = torch.arange(graph.n_edges)[None] == edge
        high, low = (bed.run(circuit.kept.float() + step * here).metric.double() for step in (0.01, -0.01))
        assert float((high - low).mean()) / 0.02 == pytest.approx(float(effects.sum(0)[edge]), rel=0.05)


@pytest.mark.parametrize("kind", ["interchange", "zero", "mean"])
def test_effects_are_those_of_cutting_a_node_s_edges(local: Path, circuit: Circuit, kind: Kind) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bench = prepare_bench(load_subject(local / "model"), Pairs.from_list(rows), 0.7, Ablation(kind))
    bed, graph = TestBed.of(bench, bench.data.test), bench.subject.graph
    nothing = Circuit.of(circuit.scores, circuit.kept & ~edges_from(graph, ["a1.h0"]))
    for name, one, zero in (("a0.h1", circuit, False), ("a1.h0", nothing, True), ("m0", circuit, False)):
        found = node_effects(bed, one, [name], whole_model(bed, kind))[0]
        without = ~edges_from(graph, [name])
        cut, removed = bed.run(one.kept & without).metric, bed.run(without[None]).metric
        assert found.in_circuit.value == pytest.approx(float((bed.run(one.kept).metric - cut).mean()), abs=1e-5)
        assert found.in_model.value == pytest.approx(float((bed.full.metric - removed).mean()), rel=1e-3, abs=1e-5)
        assert (found.in_circuit.value == 0) == zero and found.in_model.value != 0


WORDS = [f"w{number}" for number in range(TOKENS)]


@pytest.fixture(scope="module")
def by_hand() -> Explanation:
    """Of a model whose previous-token and induction heads were written by hand, on "a B ... a" -> B."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    subject = replace(planted(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0"))
    draw, rows = random.Random(0), []
    for number in range(48):
        one, two = (draw.sample(WORDS[1:], 8) for _ in range(2))
        said, place = " ".join([*one, one[2]]), len(" ".join(one[:3])) + 1
        row = {
            "clean": said,
            "corrupted": " ".join([*two, two[2]]),
            "answer": f" {one[3]}",
            "wrong_answer": f" {one[6]}",
        }
        roles = {"next": [place, place + len(one[3])]}
        rows.append(row | {"roles": roles, "split": ("train", "val", "test")[number % 3]})
    bench = prepare_bench(subject, Pairs.from_list(rows), 0.5)
    kept = torch.ones(1, bench.subject.graph.n_edges, dtype=torch.bool)
    scores = EdgeScores(bench.subject.graph, torch.ones(1, bench.subject.graph.n_edges), "all")
    return explain_circuit(bench, Circuit.of(scores, kept), heads=3, mlps=1)


def test_planted_heads_are_named_with_what_they_attend_to_and_write(by_hand: Explanation) -> None:
    assert by_hand.nodes is not None
    nodes = {node.name: node for node in by_hand.nodes.leading}
    assert {"a0.h0", "a1.h0"} < set(nodes)
    mover, before = nodes["a1.h0"], nodes["a0.h0"]
    assert "induction" in mover.roles and next(iter(mover.acts_at)) == "end"
    assert next(iter(mover.look.attends)) == "next" and mover.look.attends["next"] > 0.9 > mover.look.uniform["next"]
    assert [one[0] for one in mover.look.writes] == [example.answer for example in by_hand.examples]
    against = nodes["a1.h1"].look  # copy suppression
    assert [one[0] for one in against.lowers] == [example.clean[-1] for example in by_hand.examples]
    assert "previous_token" in before.roles and next(iter(before.acts_at)) == "next"
    assert mover.beyond and before.beyond and mover.in_circuit.value == pytest.approx(mover.in_model.value)
    for node in nodes.values():
        for pattern in node.look.patterns:
            assert all(
                sum(line) == pytest.approx(1, abs=0.01) and len(line) == at + 1 for at, line in enumerate(pattern)
            )
        assert sum(node.acts_at.values()) == pytest.approx(1)
        assert sum(node.look.attends.values()) == pytest.approx(1 if node.name[0] == "a" else 0)
    said = dict(leading_sentences(by_hand.nodes))
    assert "attends most to next" in said["a1.h0"] and len(said) == 3
    by_hand_again = by_hand.from_dict(json.loads(json.dumps(by_hand.to_dict())))
    assert by_hand_again == by_hand


def test_random_nodes_are_of_the_circuit_and_are_none_of_the_chosen(circuit: Circuit) -> None:
    names = circuit.nodes()
    drawn = random_nodes(circuit, names[:1], 0)
    assert drawn and set(drawn) <= set(names[1:])
    assert random_nodes(circuit, names, 0) == []
