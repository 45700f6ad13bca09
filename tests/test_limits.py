"""Prompts that a model does not take are refused; those that it takes give the same logits alone and in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import failure, settings
from conftest import tiny_batch, tiny_model

from circuitlit import Pairs, UserError, load_subject
from circuitlit.evaluate.begin_token import tell_front
from circuitlit.evaluate.find import ask, prepare_bench
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject
from circuitlit.model.limits import longest_prompt

NTK = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 3,
    "long_factor": [3.0] * 3,
    "original_max_position_embeddings": 12,
}
SCHEMES: dict[str, tuple[str, dict[str, Any], int]] = {
    "learned": ("gpt2", {"n_positions": 12}, 12),
    "learned with an offset": ("opt", {"max_position_embeddings": 12}, 12),
    "rotary": ("llama", {"max_position_embeddings": 12}, 12),
    "dynamic NTK": ("llama", {"max_position_embeddings": 12, "rope_parameters": NTK}, 11),
    "LongRoPE": ("llama", {"max_position_embeddings": 64, "rope_parameters": LONG}, 12),
    "a window": ("mistral", {"max_position_embeddings": 64, "sliding_window": 12}, 12),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_prompts_up_to_the_bound_are_alike_in_any_batch_and_longer_ones_refused(scheme: str) -> None:
    name, numbers, most = SCHEMES[scheme]
    subject = Subject(tiny_model(name, **numbers))
    assert longest_prompt(subject.model.config)[0] == most
    ids = torch.randint(1, 40, (2, most + 1), generator=torch.Generator().manual_seed(0))
    masked, layout = MaskedModel(subject), MaskLayout(subject.graph)
    masks = layout.dense(torch.ones(layout.size, dtype=torch.float64))
    at = torch.tensor([[4]])

    def logits(rows: torch.Tensor) -> torch.Tensor:
        batch = tiny_batch(len(rows), rows.shape[1], 1)
        ablated = References(subject, "zero").compute(batch).ablated
        return masked(masks, rows, ablated, at.expand(len(rows), 1))

    short = ids[:1, :5]
    alone = logits(short)
    assert torch.allclose(alone, subject.model(short).logits[:, 4:], atol=1e-10)
    beside = ids[:, :most].clone()
    beside[0, 5:] = 0
    assert torch.allclose(logits(beside)[:1], alone, atol=1e-10)
    for run in (subject.hidden, logits):
        with pytest.raises(UserError, match=f"{most + 1} tokens are more than .* \\({most}\\); shorten"):
            run(ids)
    assert torch.equal(logits(short), alone)  # nothing stays behind


def test_a_token_beyond_the_embedding_is_refused() -> None:
    subject = Subject(tiny_model("gpt2"))
    with pytest.raises(UserError, match="token 50 is beyond the model's embedding of 50 rows"):
        subject.hidden(torch.tensor([[1, 50]]))


def test_the_console_names_the_pair(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    long = {key: " ".join(rows[0][key].split() * 60) for key in ("clean", "corrupted")}
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, rows[0] | long])))
    message = failure(capsys, *settings(local, tmp_path / "out", "logger=none", f"task.build.path={file}"))
    assert f"train pair 12 ({file}:37): " in message and "tokens are more than the model has positions for" in message


def test_a_beginning_token_that_is_left_out_is_tried(local: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = load_subject(local / "model")
    assert subject.tokenizer is not None
    rows = [json.loads(line) for line in (local / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        ids = torch.tensor([subject.tokenizer(row["clean"])["input_ids"]])
        said = int(subject.logits(ids, torch.tensor([[ids.shape[1] - 1]])).argmax())
        row["answer"] = f" {subject.tokenizer.decode([said])}"  # so that all are right without the token
        row.pop("wrong_answer")
    led = [row | {key: f"w0 {row[key]}" for key in ("clean", "corrupted")} for row in rows]
    short, long = (
        prepare_bench(subject, Pairs.from_list(some).first(None, 0, None), batch_size=5) for some in (rows, led)
    )
    caplog.set_level("INFO")
    for bench in (short, long):
        tell_front(bench)
    assert not caplog.messages
    subject.tokenizer.bos_token = "w0"
    without, there = (ask(bench, aloud=False)[0].accuracy.value for bench in (short, long))
    ask(short)
    ask(long)
    assert there < without == 1
    said = f"no beginning token: accuracy {without:.3f}; with w0 in front it would be {there:.3f}"
    assert [line for line in caplog.messages if "beginning" in line] == [said]
