"""`heads`: roles of a circuit's heads, texts and lists, the verb from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import WORDS, call, failure
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from circuitlit.errors import UserError
from circuitlit.graph import Circuit, EdgeScores, Graph
from circuitlit.heads import (
    HeadScores,
    heads_in_circuit,
    repeated_tokens,
    roles_in_circuit,
    successor_lists,
)
from circuitlit.heads.greater_than import heads_into_mlps, mlps_to_logits
from circuitlit.heads.text import read_passages, sample_passages
from circuitlit.model.load import load_subject


def small_circuit() -> Circuit:
    graph = Graph(2, 2, 2)
    names = ["input->a0.h0<v>", "a0.h0->m1", "m1->logits", "input->a0.h1<v>", "a1.h0->logits"]
    kept = torch.zeros(1, graph.n_edges)
    kept[0, [graph.edge_index(name) for name in names]] = 1
    return Circuit.cut(EdgeScores(graph, kept, "hand"), len(names))


def test_roles_of_a_circuits_heads(tmp_path: Path) -> None:
    circuit = small_circuit()
    assert heads_in_circuit(circuit).nonzero().tolist() == [[0, 0]]  # the others lead nowhere or come from nowhere
    assert mlps_to_logits(circuit) == [1] and heads_into_mlps(circuit, [1]) == [(0, 0)]
    grids = {"induction": torch.tensor([[0.7, 0.9], [0.1, torch.nan]]), "copying": torch.full((2, 2), 0.05)}
    scores = HeadScores(circuit.graph, grids, {"model": "hand"})
    found = roles_in_circuit(scores, circuit, {"induction": 0.4, "copying": 0.1, "successor": 0.5})
    assert found == {"induction": [("a0.h0", pytest.approx(0.7))], "copying": []}
    assert scores.top("induction", 5) == [(0, 1), (0, 0), (1, 0)]
    scores.save(tmp_path)
    loaded = HeadScores.load(tmp_path)
    assert loaded.graph == scores.graph and loaded.details == scores.details
    for name, grid in grids.items():
        torch.testing.assert_close(loaded.scores[name], grid, equal_nan=True)
    assert json.loads((tmp_path / "heads.json").read_text())["scores"]["induction"]["a0.h1"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="different models"):
        roles_in_circuit(HeadScores(Graph(1, 2, 2), {}), circuit, {})
    (tmp_path / "heads.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="no readable head scores"):
        HeadScores.load(tmp_path)


def test_repeated_tokens() -> None:
    ids = repeated_tokens(5000, 16, 10, seed=3, bos=7)
    assert ids.shape == (16, 21) and bool((ids[:, 0] == 7).all()) and torch.equal(ids[:, 1:11], ids[:, 11:])
    assert int(ids[:, 1:].min()) >= 100 and torch.equal(ids, repeated_tokens(5000, 16, 10, seed=3, bos=7))
    with pytest.raises(UserError, match="at least 16"):
        repeated_tokens(5000, 2, 10, seed=0)


def test_passages_and_successor_lists(local: Path, tmp_path: Path) -> None:
    subject = load_subject(local / "model")
    ids = sample_passages(subject, 5, 9, seed=1, rows=3)
    assert ids.shape == (5, 9) and torch.equal(ids, sample_passages(subject, 5, 9, seed=1, rows=3))
    assert not torch.equal(ids, sample_passages(subject, 5, 9, seed=2, rows=3))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": " ".join(WORDS[:12])}) + "\n")
    (tmp_path / "a.txt").write_text(" ".join(WORDS[:12]) + "\n\nw1 w2\n\n" + " ".join(WORDS[5:17]))
    expected = torch.arange(1, 11)
    assert torch.equal(read_passages(tmp_path / "a.jsonl", subject, 3, 10)[0], expected)
    assert torch.equal(read_passages(tmp_path / "a.txt", subject, 3, 10), torch.stack([expected, expected + 5]))
    with pytest.raises(UserError, match="no passage has 50 tokens"):
        read_passages(tmp_path / "a.txt", subject, 3, 50)
    (tmp_path / "b.jsonl").write_text('{"text": "w1"}\n{\n\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"2 of 3 rows cannot be used: 2 x no object with .*b.jsonl:2, .*b.jsonl:4"):
        read_passages(tmp_path / "b.jsonl", subject, 3, 1)
    assert subject.tokenizer is not None and successor_lists(subject.tokenizer) == []


def test_successor_lists_keep_single_tokens_and_wrap_days() -> None:
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    known = ["[unk]", *map(chr, range(ord("A"), ord("Z") + 1)), *map(str, range(1, 10)), *days]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[unk]"))
    lists = successor_lists(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[unk]"))
    assert len(lists) == 3  # no spelling with a space, none in small letters, no number of two digits
    found = {tuple(known[token] for token in tokens): pairs for tokens, pairs in lists}
    assert found[tuple(days)] == [(i, (i + 1) % 7) for i in range(7)]
    assert found[tuple(known[1:27])] == [(i, i + 1) for i in range(25)]
    assert found[tuple("123456789")] == [(i, i + 1) for i in range(8)]


def named_pairs(folder: Path) -> Path:
    """Pairs of five words with the roles of IOI."""
    rows = []
    for i in range(24):
        io, s, other = WORDS[i % 8], WORDS[8 + i % 8], WORDS[20 + i % 12]
        clean, corrupted = f"{io} {s} w39 {other} {s} w38", f"w16 w17 w39 {other} w18 w38"
        roles = {"io": [0, len(io)], "s1": s, "s2": [clean.rindex(s), clean.rindex(s) + len(s)]}
        row = {"clean": clean, "corrupted": corrupted, "answer": f" {io}", "wrong_answer": f" {s}", "roles": roles}
        rows.append(row | {"split": ("train", "val", "test")[i % 3]})
    path = folder / "named.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def arguments(local: Path, out: Path, *more: str) -> list[str]:
    return [
        "model=local",
        f"model.path={local}/model",
        "task=jsonl",
        f"task.build.path={local}/pairs.jsonl",
        f"hydra.run.dir={out}",
        "heads.top=1",
        "heads.repeats.length=6",
        "heads.causal.draws=3",
        "heads.passages={count: 3, length: 8, used: 2}",
        *more,
    ]


def test_the_verb_leaves_scores_figure_and_checks(local: Path, tmp_path: Path) -> None:
    named = named_pairs(tmp_path)
    out = tmp_path / "out"
    call(*arguments(local, out, f"task.build.path={named}", "heads.thresholds.copying=-1"), verb="heads")
    assert {"heads.json", "heads.safetensors", "heads.html", "text.jsonl"} <= {p.name for p in out.iterdir()}
    found = json.loads((out / "heads.json").read_text())
    scores = HeadScores.load(out)
    assert scores.details["n_pairs"] == 8 and scores.scores["induction"].shape == (2, 2)
    assert set(found["details"]["causal"]) >= {"induction", "previous_token", "duplicate_token"}
    assert found["details"]["ioi_algorithm"]["shares"]["B"]["share"]["value"] is not None
    texts = [json.loads(line) for line in (out / "text.jsonl").read_text().splitlines()]
    assert len(texts) == 3 and {len(text["ids"]) for text in texts} == {8}
    page = (out / "heads.html").read_text()
    assert "Plotly.newPlot" in page and "previous token" in page and 'src="http' not in page


def test_the_verb_on_another_task_with_a_text_and_a_circuit(local: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(WORDS[i : i + 9]) for i in range(4)))
    circuit = small_circuit()
    circuit.save(tmp_path)
    more = ["heads.scores=[copying,copy_suppression]", f"text={tmp_path}/text.txt", f"heads.circuit={tmp_path}"]
    call(*arguments(local, tmp_path / "out", *more), verb="heads")
    details = HeadScores.load(tmp_path / "out").details
    assert details["circuit"]["heads"] == ["a0.h0"] and "ioi_algorithm" not in details  # type: ignore[index]


@pytest.mark.parametrize(
    "wrong,says",
    [
        ("heads.scores=[indction]", "heads.scores[0]=indction is not repeats"),
        ("heads.causal.ablation=resample", "heads.causal.ablation=resample is not interchange"),
        ("heads.algorithm.parts=A", "heads.algorithm.parts=A is not B, C or D"),
        ("heads.top=3", "heads.top=3 is more than half of the model's heads"),
        ("heads.pairs=0", "heads.pairs=0 is not a whole number"),
        ("heads.repeats.sequences=2", "take at least 16 sequences"),
        ("text=nowhere.txt", "text=nowhere.txt does not exist"),
        ("heads.circuit=nowhere", "heads.circuit=nowhere does not exist"),
    ],
)
def test_wrong_settings_end_in_one_line(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, says: str
) -> None:
    assert says in failure(capsys, *arguments(local, tmp_path / "out", wrong), verb="heads")
    assert not list((tmp_path / "out").glob("heads.*[!g]"))
