"""What a model's short hash sees: every weight, its place, its type and the model's settings, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from circuitlit.cli.kept import files_of
from circuitlit.model import Subject
from circuitlit.model.contents import ROW, contents_of, hash_of


def one(weight: Tensor) -> str:
    return hash_of([("w", weight)])


def test_the_same_model_has_the_same_hash_wherever_it_is(tmp_path: Path) -> None:
    model = tiny_model("llama")
    found = contents_of(model)
    assert contents_of(model) == contents_of(Subject(model).model) == found
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        assert contents_of(AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=model.dtype)) == found


def wider(model: PreTrainedModel) -> None:
    model.config.rms_norm_eps = 1e-3


def one_weight(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[-1, -1] += 1e-3


def other_type(model: PreTrainedModel) -> None:
    model.bfloat16()


@pytest.mark.parametrize("change", [wider, one_weight, other_type])
def test_what_changes_the_model_changes_its_hash(change: Callable[[PreTrainedModel], None]) -> None:
    model = tiny_model("llama")
    before = contents_of(model)
    change(model)
    assert contents_of(model) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_every_number_of_a_large_tensor_is_seen(dtype: torch.dtype) -> None:
    size = 3 * 8 * ROW + 5  # whole rows of bytes and a rest
    weight = torch.randint(0, 100, (size,), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert one(torch.cat([weight[:1], weight])[1:]) == one(weight)  # a piece of another tensor
    assert one(weight.view(-1, 1)) != one(weight) != one(weight.flip(0))
    for place in (0, size // 2, size - 1):
        other = weight.clone()
        other[place] += 1
        assert one(other) != one(weight)
    first, last = weight[0].item(), weight[8 * ROW + 9].item()
    assert first != last
    weight[0], weight[8 * ROW + 9] = last, first
    swapped = one(weight)
    weight[0], weight[8 * ROW + 9] = first, last
    assert swapped != one(weight)


def test_what_is_not_there_yet_and_what_wraps_tensors_has_a_hash() -> None:
    assert one(torch.empty(3, device="meta")) != one(torch.empty(4, device="meta"))
    assert one(torch.zeros(())) != one(torch.zeros(0))


def test_files_that_settings_name_are_read_but_not_the_models(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("one")
    groups = {"task": {"build": {"path": str(file), "n": [1, "none"]}}, "model": {"path": str(file)}}
    found = files_of(groups)
    assert list(found["files"]) == [str(file)] and files_of(groups) == found
    file.write_text("two")
    assert files_of(groups) != found and files_of({"model": groups["model"]}) == {}
