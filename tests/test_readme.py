"""The Python example of the README runs as it stands, on a tiny model in place of the packaged one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from transformers import PreTrainedTokenizerBase

import circuitlit
from circuitlit import Circuit, EdgeScores, Subject

README = Path(__file__).parent.parent / "README.md"


def test_the_python_example_runs(
    byte_bpe: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    subject = Subject(tiny_model("gpt2", vocab_size=len(byte_bpe)).float(), byte_bpe, name="smollm2")
    monkeypatch.setattr(circuitlit, "load_subject", lambda name: subject, raising=False)
    monkeypatch.chdir(tmp_path)
    scores = torch.rand(1, subject.graph.n_edges)
    Circuit.cut(EdgeScores(subject.graph, scores, "test"), 30).save(tmp_path)  # a finished run's
    exec(code.replace("runs/ioi-smollm2/<run id>", str(tmp_path)), {})
    assert re.search(r"\d+\.\d{3} \[\d+\.\d{3}, \d+\.\d{3}\]", capsys.readouterr().out)
