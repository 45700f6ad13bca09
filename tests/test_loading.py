"""Folders and files of weights: read whole, or refused in one sentence that names what is wrong with them."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_batch, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitlit import UserError, load_subject

WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, Tensor]], Any]


@pytest.fixture(scope="module")
def whole(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and a tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("llama", vocab_size=80).save_pretrained(folder)
    for file in (local / "model").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def changed(folder: Path, change: Change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def settings(folder: Path, **numbers: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | numbers))


def renamed(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if ".mlp." in name]:
        weights[name.replace(".mlp.", ".ffn.")] = weights.pop(name)


def cut(folder: Path, share: float) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def indexed(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def quantised(folder: Path, **how: Any) -> None:
    settings(folder, quantization_config=how)


NONE = r"says that weights are packed \(.*\), and none is"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no lm_head": (lambda f: changed(f, lambda w: w.pop("lm_head.weight")), "no weights for lm_head.weight"),
    "renamed MLPs": (lambda f: changed(f, renamed), r"no weights for model.layers.0.mlp.down_proj.weight.* and 6 more"),
    "surplus": (lambda f: changed(f, lambda w: w.update({"model.more": torch.ones(2)})), "holds model.more, which"),
    "fewer layers": (lambda f: settings(f, num_hidden_layers=2), "holds model.layers.2.* no place for"),
    "more layers": (lambda f: settings(f, num_hidden_layers=4), "no weights for model.layers.3"),
    "another width": (
        lambda f: settings(f, intermediate_size=44),
        r"has the shape \[(24, 40|40, 24)\], config.json says \[(24, 44|44, 24)\]",
    ),
    "another vocabulary": (lambda f: settings(f, vocab_size=90), r"has the shape \[80, 24\]"),
    "not finite": (lambda f: changed(f, lambda w: w["lm_head.weight"].fill_(torch.inf)), "lm_head.weight holds NaN"),
    "cut off": (lambda f: cut(f, 0.9), "ends at byte"),
    "cut in its header": (lambda f: cut(f, 0.01), "ends at byte"),
    "empty": (lambda f: cut(f, 0.0), "ends at byte 0"),
    "a pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "could not be loaded .*no file named model.safetensors"),
    "a missing part": (indexed, "model-00001-of-00002.safetensors is missing"),
    "an index of nothing": (lambda f: (f / f"{WEIGHTS}.index.json").write_text("{}"), "is no index of weights"),
    "a cut config": (lambda f: (f / "config.json").write_text('{"model_type": "lla'), "could not be loaded"),
    "an unknown type": (lambda f: settings(f, model_type="lamma"), "could not be loaded .*lamma"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "has no tokenizer that can be read"),
    "a small embedding": (
        lambda f: tiny_model("llama", vocab_size=20).save_pretrained(f),
        "token [0-9]+ is beyond the model's embedding of 20 rows",
    ),
    "GPTQ": (lambda f: quantised(f, quant_method="gptq", bits=4), NONE),
    "bitsandbytes": (lambda f: quantised(f, quant_method="bitsandbytes", load_in_4bit=True), NONE),
    "AWQ": (lambda f: quantised(f, quant_method="awq", bits=4), NONE),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused_by_name(
    damage: str, in_pieces: bool, whole: Path, tmp_path: Path
) -> None:
    make, words = DAMAGES[damage]
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    make(folder)
    if in_pieces and damage in ("no weights", "not finite"):
        words = "holds"  # says another sentence, or only when a piece is read
    with pytest.raises(UserError, match=words) as found:
        subject = load_subject(folder, in_pieces=in_pieces)
        assert subject.source is not None  # its pieces are read later
        for name, value in subject.model.named_parameters():
            subject.source.read([name], value.shape, 0, value.numel())
    assert "\n" not in str(found.value) and "Traceback" not in str(found.value)


def test_buffers_and_tied_weights_are_no_gap(local: Path, tmp_path: Path) -> None:
    model = tiny_model("gpt2", vocab_size=80)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    old = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(2)}
    changed(tmp_path, lambda weights: weights.update(old))
    for file in (local / "model").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    batch = tiny_batch()
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(batch.clean).logits
        found = load_subject(tmp_path, dtype="float64").model(batch.clean).logits
    assert torch.equal(found, expected)


def test_a_live_model_in_another_dtype_is_the_one_that_its_folder_gives(local: Path, tmp_path: Path) -> None:
    """Rotary frequencies are no weights: rounded, they would turn far positions by another angle."""
    model = tiny_model("llama").float()
    model.save_pretrained(tmp_path)
    for file in (local / "model").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    live, loaded = (load_subject(one, dtype="bfloat16").model for one in (model, tmp_path))
    ids = torch.arange(40)[None]
    assert torch.equal(live(ids).logits, loaded(ids).logits)
    assert all(torch.equal(live.get_buffer(name), own) for name, own in loaded.named_buffers())
    assert model.dtype == torch.float32


@pytest.mark.parametrize("size", [0, 3, 100, 5000])
def test_a_gguf_file_that_is_cut_off_is_refused(size: int, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", torch.ones(50, 24).numpy())
    writer.add_tensor("output.weight", torch.ones(50, 24).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file.write_bytes(file.read_bytes()[:size])
    words = f"ends inside its table of tensors, at byte {size}, or|ends at byte {size} of 9"
    with pytest.raises(UserError, match=words):
        load_subject(file, cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    "model,words",
    [
        ("./nowhere", "nowhere does not exist; name a folder"),
        ("/no/such/model", "does not exist; name a folder"),
        ("gone.gguf", "gone.gguf does not exist"),
        ("", "folder"),
    ],
)
def test_names_of_nothing(model: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as found:
        load_subject(model)
    assert "model.path" not in str(found.value) and "=" not in str(found.value)
