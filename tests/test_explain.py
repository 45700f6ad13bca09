"""What a circuit does, as its page shows it: identities of the examples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import call, settings

from circuitlit import Circuit, Explanation, Method, Pairs, Workbench, eap_ig, explain_circuit, load_subject
from circuitlit.evaluate.find import prepare_bench
from circuitlit.heads.explain.examples import show_examples
from circuitlit.heads.explain.explanation import Likely
from circuitlit.report import write_page
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
