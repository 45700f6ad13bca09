"""Pairs without corrupted prompts: circuits by zeros, means and constants, refusals of what needs such prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings
from transformers import AutoTokenizer

from circuitlit import References, TestBed, UserError, eap, jsonl, load_subject
from circuitlit.discover import MaskedLoss
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, mean_writers
from circuitlit.objective import log_probability, negative_metric
from circuitlit.tasks import PairsModule


def write(local: Path, folder: Path, *fields: str, some: bool = False) -> Path:
    """The pairs of `write_local` without some fields; `some` leaves the first line as it is."""
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    bare = [{name: value for name, value in row.items() if name not in fields} for row in rows]
    file = folder / "clean_only.jsonl"
    file.write_text("\n".join(map(json.dumps, [rows[0], *bare[1:]] if some else bare)))
    return file


@pytest.mark.long
@pytest.mark.parametrize("ablation", ["mean", "zero", "optimal"])
def test_a_circuit_page_and_result_from_clean_prompts_alone(ablation: str, local: Path, tmp_path: Path) -> None:
    file = write(local, tmp_path, "corrupted", "wrong_answer")
    out = tmp_path / "out"
    call(*settings(local, out, "logger=none", f"ablation={ablation}", f"task.build.path={file}"))
    result = json.loads((out / "result.json").read_text())
    assert result["n_edges"] > 0 and result["kl"]["value"] > 0 and abs(result["full"]["kl"]["value"]) < 1e-6
    assert result["log_prob"]["value"] < 0 and result["logit_diff"]["value"] is None
    full, worst, own = (result[key]["log_prob"]["value"] for key in ("full", "corrupted", "attribution"))
    share = (result["log_prob"]["value"] - worst) / (full - worst)
    assert result["faithfulness"]["value"] == pytest.approx(share, rel=1e-4)
    assert own < 0 and result["behaviour"]["corrupted_kl"] is None
    page = (out / "report.html").read_text()
    assert "log-probability" in page and "all edges cut" in page
    assert (out / "circuit.json").is_file()


NEEDS = {
    "interchange": ("train", [], ("corrupted",), "which ablation=interchange takes activations from"),
    "attribute": ("attribute", [], ("corrupted",), "which ablation=interchange takes activations from"),
    "heads": ("heads", ["ablation=mean"], ("corrupted",), "no corrupted prompts, which heads compares with"),
    "intervene": ("intervene", ["ablation=mean"], ("corrupted",), "which intervene compares with"),
    "objective": ("train", ["ablation=mean", "objective=logit_difference"], ("wrong_answer",), "(logit_diff"),
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_needs_them_is_refused_before_anything_loads(
    what: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, more, fields, words = NEEDS[what]
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # an error of another kind
    file = write(local, tmp_path, *fields)
    paths = [f"task.build.path={file}", f"hydra.run.dir={tmp_path}/out", "task=jsonl", "model=local"]
    message = failure(capsys, *paths, f"model.path={local}/model", *more, verb=verb)
    assert words in message and str(file) in message


def test_wrong_answers_in_some_lines_do_not_mix_two_metrics(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(local, tmp_path, "wrong_answer", some=True)
    message = failure(capsys, *settings(local, tmp_path / "out", "method=eap", f"task.build.path={file}"))
    assert 'have no "wrong_answer"' in message and "negative_metric" in message


def test_corrupted_prompts_in_some_lines_are_refused(local: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(local / "model")
    with pytest.raises(UserError, match=r"\d+ of \d+ pairs have no corrupted prompt, the first is .*jsonl:"):
        jsonl(tokenizer, str(write(local, tmp_path, "corrupted", some=True)), seed=0)


def test_parts_used_from_python(local: Path, tmp_path: Path) -> None:
    subject = load_subject(local / "model")
    splits = jsonl(subject.tokenizer, str(write(local, tmp_path, "corrupted", "wrong_answer")), seed=0)  # type: ignore[arg-type]
    pairs = PairsModule(splits, subject.tokenizer, 4, seed=0)  # type: ignore[arg-type]
    batches = list(pairs.train.batches(4))
    model, layout = MaskedModel(subject), MaskLayout(subject.graph)
    with pytest.raises(UserError, match="these pairs have none"):
        References(subject, "interchange").compute(batches[0])
    with pytest.raises(UserError, match="these pairs have none"):
        TestBed.build(model, References(subject, "interchange"), batches)
    means = mean_writers(subject, batches)
    swapped = [replace(batch, corrupted=batch.clean) for batch in batches]
    assert torch.equal(means.heads, mean_writers(subject, swapped).heads)
    references = References(subject, "mean", means)
    scores = eap(MaskedLoss(model, layout, negative_metric), references, batches)
    assert bool(scores.values.isfinite().all()) and float(scores.values.abs().max()) > 0
    bed = TestBed.build(model, references, batches)
    logits = subject.logits(batches[0].clean, batches[0].positions)
    own = log_probability(logits, batches[0])
    torch.testing.assert_close(bed.full.metric[: len(own)], own, rtol=1e-5, atol=1e-6)
    answer = logits.log_softmax(-1).gather(-1, batches[0].answer[..., None])[..., 0]
    torch.testing.assert_close(own, (answer * batches[0].answer_mask).sum(-1) / batches[0].answer_mask.sum(-1))
