"""What the full model does on a task, against plain arithmetic on its own logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, settings
from conftest import tiny_batch, tiny_model

from circuitlit import Pairs, PairsModule, load_subject, measure_behaviour
from circuitlit.evaluate import Behaviour
from circuitlit.model import Subject


def test_behaviour_is_the_models_own() -> None:
    subject = Subject(tiny_model("gpt2"), name="gpt2")
    batches = [tiny_batch(rows=4, answers=1, seed=seed) for seed in (0, 1)]
    for batch in batches:  # the model is right on the first two pairs of each batch
        said = subject.model(batch.clean).logits[:, -1].argmax(-1)
        batch.answer[:, 0] = torch.where(torch.arange(4) < 2, said, (said + 1) % 50)
    found = Behaviour.measure(subject, batches)
    assert (found.n_pairs, found.accuracy.value) == (8, 0.5)
    differences, divergences = [], []
    for batch in batches:
        p, q = (subject.model(ids).logits[:, -1].log_softmax(-1) for ids in (batch.clean, batch.corrupted))
        rows = torch.arange(4)
        differences.append(p[rows, batch.answer[:, 0]] - p[rows, batch.wrong])
        divergences.append((p.exp() * (p - q)).sum(-1))
    assert found.metric.value == pytest.approx(float(torch.cat(differences).mean()), abs=1e-4)
    assert found.corrupted_kl.value == pytest.approx(float(torch.cat(divergences).mean()), abs=1e-4)
    assert found.accuracy.low is not None and found.accuracy.low < 0.5 < (found.accuracy.high or 0)


def test_the_verdict_is_at_the_bar() -> None:
    subject = Subject(tiny_model("gpt2"), name="gpt2")
    found = Behaviour.measure(subject, [tiny_batch(rows=4, answers=1)])
    assert found.verdict(0) is None
    assert "task.min_accuracy=0 searches anyway" in str(found.verdict(1.0))


def test_few_pairs_are_of_all_of_a_file(local: Path) -> None:
    subject = load_subject(local / "model")
    rows, answers = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()], []
    for number, row in enumerate(rows):  # it is right on the first half
        said = int(subject.model(subject.tokenizer(row["clean"], return_tensors="pt").input_ids).logits[0, -1].argmax())
        said, other = (f" {subject.tokenizer.decode([word])}" for word in (said, 5 if said == 4 else 4))
        right, wrong = (said, other) if number < len(rows) / 2 else (other, said)
        answers.append(row | {"answer": right, "wrong_answer": wrong, "split": "test"})
    data = PairsModule(Pairs.from_list([*answers, rows[0]]), subject.tokenizer, 8, 0, eval_batch_size=8)
    (few,) = measure_behaviour(subject, {"mine": data}, splits=["test"], pairs=len(rows) // 2).splits
    assert few.n_pairs == len(rows) // 2 and 0.3 < few.accuracy.value < 0.7


def test_from_the_command_line(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["behaviour.tasks=[{name: mine,with: ['task.min_accuracy=0.9']}]", "behaviour.pairs=8", "logger=none"]
    call(*settings(local, tmp_path / "out", *more), verb="behaviour")
    result = json.loads((tmp_path / "out" / "behaviour.json").read_text())
    rows = result["rows"]
    assert "task" not in result["provenance"], "the configured task was not looked at"
    assert result["provenance"]["tasks"] == [{"name": "mine", "with": ["task.min_accuracy=0.9"]}]
    assert [(row["task"], row["split"], row["n_pairs"]) for row in rows] == [("mine", "train", 8), ("mine", "test", 8)]
    assert all("does not do the task" in row["reason"] for row in rows if row["accuracy"]["value"] < 0.9)
    assert "mine" in capsys.readouterr().out
