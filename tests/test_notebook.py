"""launch/quickstart.ipynb and README.md's example: on a tiny model, and as a slow test on SmolLM2 in a kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import circuitlit
from circuitlit import Circuit, FoundCircuit, load_subject

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "launch" / "quickstart.ipynb"


def cells(**parameters: Any) -> Any:
    """The notebook with other values in its cell of parameters."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert set(parameters) == set(re.findall(r"^(\w+) =", cell.source, re.MULTILINE))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    return notebook


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer knows the words of the notebook and of the README."""
    folder = tmp_path_factory.mktemp("words")
    text = NOTEBOOK.read_text() + (ROOT / "README.md").read_text()
    known = sorted({word for word in re.findall(r"\w+", text)} | {"keys"})
    known += [f"{word}s" for word in known if f"{word}s" not in known]
    vocabulary = {word: index for index, word in enumerate(["[unk]", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]").save_pretrained(folder)
    numbers = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": len(vocabulary), "n_positions": 80}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **numbers)).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_the_notebook_runs_on_a_tiny_model(words: Path, tmp_path: Path) -> None:
    notebook, namespace = cells(MODEL=str(words), STEPS=10, FOLDER=str(tmp_path)), {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
            assert not cell.outputs, "clear the notebook's outputs before you store it"
    assert (tmp_path / "report.html").exists() and Circuit.load(tmp_path).n_edges
    assert FoundCircuit.load(tmp_path) == namespace["found"]


@pytest.mark.long
def test_the_example_of_the_readme_runs(
    words: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.setattr(circuitlit, "load_subject", lambda name: load_subject(words), raising=False)
    exec(code, {})
    assert re.search(r"\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]", capsys.readouterr().out)


@pytest.mark.slow
def test_the_notebook_runs_on_smollm2(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = cells(MODEL="smollm2", STEPS=150, FOLDER=str(tmp_path))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert "<iframe" in notebook.cells[-1].outputs[-1].data["text/html"]
    assert FoundCircuit.load(tmp_path).n_edges_total == 70_651
