"""conf/README.md: its tables are those of the yaml files, and what it shows of your own parts runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import settings_page
import torch
from cli import call
from conftest import tiny_batch
from families import FAMILIES, KeepsFloat64, tiny_family
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from circuitlit import MaskedModel, MaskLayout, Subject
from circuitlit.masked import ablated_run
from circuitlit.model.families import ANATOMIES

ROOT = Path(__file__).parent.parent
TEXT = settings_page.PAGE.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_tables_are_those_of_the_yaml_files() -> None:
    assert settings_page.page() == TEXT, "conf/ has changed; write the page again: python tests/settings_page.py"


def test_every_setting_says_what_it_means() -> None:
    settings = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", TEXT, re.MULTILINE)
    assert len(settings) > 250 and not [name for name, meaning in settings if not meaning]


def _local(folder: Path, nouns: str) -> None:
    """A tiny model that knows the words of the page's task."""
    words = [f"{noun}{ending}" for noun in nouns.split() for ending in ("", "s")]
    vocabulary = {word: index for index, word in enumerate(["[unk]", "The", "is", "are", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]").save_pretrained(folder)
    numbers = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(vocabulary), "n_positions": 8}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **numbers)).save_pretrained(folder)


def test_a_task_and_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, (task, method) = blocks("python")[0], blocks("yaml")
    (tmp_path / "my_parts.py").write_text(module)
    for group, name, text in (("task", "plural", task), ("method", "late_first", method)):
        (tmp_path / "my_conf" / group).mkdir(parents=True)
        (tmp_path / "my_conf" / group / f"{name}.yaml").write_text(text)
    _local(tmp_path / "model", re.findall(r'NOUNS = "(.*?)"', module)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (command,) = re.findall(r"python -m circuitlit (attribute .*--config-dir.*)", TEXT)
    words = [*command.split()[1:], "model=local", "model.path=model", "hydra.run.dir=out", "evaluate.controls=2"]
    monkeypatch.setattr(sys, "argv", ["circuitlit", *command.split(), *words])
    call(*words, "logger=none", verb="attribute")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["task"], result["method"]) == ("plural", "late_first")


def test_a_family_of_ones_own_is_the_stock_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "solar_open", FAMILIES["dots1"])
    monkeypatch.setattr("circuitlit.model.families.ANATOMIES", dict(ANATOMIES))
    exec(blocks("python")[1], {"__name__": "my_train"})
    with KeepsFloat64():
        _is_the_stock_model(Subject(tiny_family("solar_open"), name="solar_open"))


def _is_the_stock_model(subject: Subject) -> None:
    batch = tiny_batch()
    stock = torch.take_along_dim(subject.model(batch.clean).logits, batch.positions[..., None], 1)
    for open_share in (1.0, 0.5):
        flat = torch.full((subject.graph.n_edges,), open_share, dtype=torch.float64)
        masks, ablated = MaskLayout(subject.graph).dense(flat), ablated_run(subject, batch, "interchange")
        found = MaskedModel(subject)(masks, batch.clean, ablated, batch.positions)
        assert torch.allclose(found, stock, rtol=1e-10, atol=1e-10) == (open_share == 1.0)
