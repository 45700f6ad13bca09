"""Quantised checkpoints: the subject is the dequantised model, whole or a block at a time, or the format is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from circuitlit import UserError, load_subject
from circuitlit.discover import MaskedLoss
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.one_block import one_block
from circuitlit.model import Subject
from circuitlit.model.packed import AWQ_ORDER, Packed, bits_of, unpacker
from circuitlit.objective import kl_divergence

STORED = load_file(Path(__file__).parent / "data" / "packed_bitsandbytes.safetensors")  # made by bitsandbytes 0.50.2
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
PACKED_INTS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"all": {"targets": ["Linear"], "weights": GROUPS}},
}


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_matrices_of_bitsandbytes_are_unpacked_as_it_does(kind: str) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": kind} if kind != "int8" else {"load_in_8bit": True}
    found = unpacker(AutoConfig.for_model("llama", quantization_config={"quant_method": "bitsandbytes", **how}))
    assert found is not None
    names = {part: f"{kind}.{part[2:] if ':' in part[:2] else 'weight' + part.removeprefix('?')}" for part in found[0]}
    names |= {":SCB": "int8.SCB"} if kind == "int8" else {}
    parts = {part: STORED[name] for part, name in names.items() if name in STORED}
    matrix = Packed(parts, (32, 64), found[1]).matrix(torch.float32)
    assert torch.equal(matrix, STORED[f"{kind}.expected"].float()) or kind == "int8"
    torch.testing.assert_close(matrix, STORED[f"{kind}.expected"].float(), rtol=2e-3, atol=1e-6)
    assert Packed(parts, (32, 64), found[1]).nbytes < matrix.nbytes


def nf4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """NF4 without double quantisation; what it unpacks to, number by number."""
    code = STORED["nf4.weight.quant_map"]
    blocks = weight.flatten().view(-1, 64)
    largest = blocks.abs().amax(1)
    places = (blocks / largest[:, None])[..., None].sub(code).abs().argmin(-1).flatten()
    state = torch.tensor(list(json.dumps({"quant_type": "nf4", "blocksize": 64}).encode()), dtype=torch.uint8)
    parts = {
        "weight": (places[::2] * 16 + places[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": code,
        "weight.quant_state.bitsandbytes__nf4": state,
    }
    return parts, (code[places].view(-1, 64) * largest[:, None]).view(weight.shape)


def grouped(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit numbers `[into, out]`, and zero points and scales `[group, out]` of 32 inputs."""
    draw = torch.Generator().manual_seed(0)
    scales = (weight.t().unflatten(0, (-1, 32)).abs().amax(1) / 7).half()
    zeros = torch.randint(1, 16, scales.shape, generator=draw)
    whole = (weight.t() / scales.float().repeat_interleave(32, 0)).round() + zeros.repeat_interleave(32, 0)
    return whole.clamp(0, 15).long(), zeros, scales


def in_32_bits(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight numbers of the last axis in one, by plain integers."""
    rows = numbers.reshape(-1, 8).tolist()
    packed = [sum(row[place] << 4 * order[place] for place in range(8)) for row in rows]
    signed = [value - 2**32 if value >= 2**31 else value for value in packed]
    return torch.tensor(signed, dtype=torch.int32).view(*numbers.shape[:-1], -1)


def unpacked(whole: Tensor, zeros: Tensor, scales: Tensor, group: Tensor) -> Tensor:
    return ((whole - zeros[group]) * scales.float()[group]).t()


def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, zeros, scales = grouped(weight)
    group = torch.arange(len(whole)) // 32
    group = group[torch.randperm(len(group), generator=torch.Generator().manual_seed(1))]  # as with desc_act
    parts = {
        "qweight": in_32_bits(whole.t()).t().contiguous(),
        "qzeros": in_32_bits(zeros - 1),
        "scales": scales,
        "g_idx": group.int(),
    }
    return parts, unpacked(whole, zeros, scales, group)


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, zeros, scales = grouped(weight)
    parts = {"qweight": in_32_bits(whole, AWQ_ORDER), "qzeros": in_32_bits(zeros, AWQ_ORDER), "scales": scales}
    return parts, unpacked(whole, zeros, scales, torch.arange(len(whole)) // 32)


def compressed(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, _, scales = grouped(weight)
    eight = torch.full_like(scales, 8).long()
    shape = torch.tensor(weight.shape)
    parts = {"weight_packed": in_32_bits(whole.t()), "weight_scale": scales.t().float(), "weight_shape": shape}
    return parts, unpacked(whole, eight, scales, torch.arange(len(whole)) // 32)


Pack = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
KINDS: dict[str, tuple[dict[str, Any], Pack]] = {
    "nf4": (NF4, nf4),
    "gptq": (GPTQ, gptq),
    "awq": (AWQ, awq),
    "compressed-tensors": (PACKED_INTS, compressed),
}


def packed_folder(kind: str, local: Path, folder: Path) -> tuple[Path, Any]:
    """A tiny Llama whose blocks' matrices are packed, and the model with what they unpack to."""
    pytest.importorskip("compressed_tensors" if kind == "compressed-tensors" else "torch")
    config, pack = KINDS[kind]
    model = tiny_model("llama", **SHAPE).float()
    weights = {}
    for name, own in model.state_dict().items():
        if name.endswith("proj.weight"):
            parts, matrix = pack(own)
            weights |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
            own.copy_(matrix)
        else:
            weights[name] = own
    model.save_pretrained(folder)
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
    for file in (local / "model").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder, model


def loss_and_gradient(model: MaskedModel) -> list[Tensor]:
    layout, batch = MaskLayout(model.graph), tiny_batch()
    masks = torch.rand(layout.size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reference = References(model.subject, "interchange")(batch)
    loss = MaskedLoss(model, layout, kl_divergence)(masks, batch, reference)
    return [loss.detach(), *torch.autograd.grad(loss, masks)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_subject_is_the_dequantised_model(kind: str, local: Path, tmp_path: Path) -> None:
    folder, plain = packed_folder(kind, local, tmp_path)
    subject = load_subject(folder)
    assert subject.provenance["packed"] == f"{kind if kind != 'nf4' else 'bitsandbytes'}, dequantised"
    assert not hasattr(subject.model.config, "quantization_config")
    for (name, ours), theirs in zip(subject.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg=name)
    expected = loss_and_gradient(MaskedModel(Subject(plain), 2, True))
    pieces = load_subject(folder, in_pieces=True)
    model = MaskedModel(pieces, 2, True)
    one_block(model, torch.device("cpu"), pieces.source)
    for ours, theirs in zip(loss_and_gradient(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if pieces.source is not None:  # unpacked here
        blocks = model.shards.rooms.rooms[1:-2]
        assert 0.1 < sum(room.kept for room in blocks) / sum(room.full for room in blocks) < 0.25
        assert not any(p.untyped_storage().nbytes() for p in model.blocks[0].parameters())


@pytest.mark.filterwarnings("ignore")
def test_weights_of_torchao_become_plain_ones(local: Path, tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    tiny_model("llama", **SHAPE).float().save_pretrained(tmp_path / "plain")
    how = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how, dtype=torch.float32)
    packed.save_pretrained(tmp_path / "packed")
    for file in (local / "model").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "packed")
    ids = tiny_batch().clean
    subject = load_subject(tmp_path / "packed")
    ours, theirs = subject.model(ids).logits, packed(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(type(p) is torch.nn.Parameter for p in subject.model.parameters())


@pytest.mark.parametrize(
    "how,words",
    [
        ({"quant_method": "hqq", "bits": 4}, "4 bit hqq cannot be unpacked"),
        (GPTQ | {"bits": 3}, "3 bit gptq cannot"),
        (AWQ | {"version": "marlin"}, "4 bit awq cannot"),
    ],
)
def test_other_formats_are_refused(how: dict[str, Any], words: str, local: Path, tmp_path: Path) -> None:
    folder, _ = packed_folder("nf4", local, tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": how}))
    with pytest.raises(UserError, match=words):
        load_subject(folder)


def test_parts_that_do_not_fill_a_matrix_are_refused(local: Path, tmp_path: Path) -> None:
    folder, _ = packed_folder("gptq", local, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.qweight"
    save_file(weights | {name: weights[name][:-1].contiguous()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"up_proj.weight (unpacks to|cannot be unpacked)"):
        load_subject(folder)


def test_bits_of_a_packed_weight() -> None:
    config = AutoConfig.for_model("llama", quantization_config=NF4)
    assert bits_of(config) == 4.5
    config.quantization_config = NF4 | {"bnb_4bit_use_double_quant": True}
    assert bits_of(config) == pytest.approx(4.127, abs=1e-3)
    config.quantization_config = AWQ
    assert bits_of(config) == 4 + 20 / 32
    config.quantization_config = {"quant_method": "mxfp4"}
    assert bits_of(config) is None  # whole when it is loaded, and its size is not said
    assert bits_of(AutoConfig.for_model("llama")) is None


@pytest.mark.long
def test_the_plan_knows_packed_sizes_and_a_step_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4,"
    shape += " num_key_value_heads: 4, vocab_size: 64}"
    packed = "+model.architecture.quantization_config={quant_method: bitsandbytes, load_in_4bit: true}"
    common = ["strategy=one_block", "trainer.accelerator=cpu", "data.batch_size=2", "logger=none", "examples=4"]
    common += ["mask.panel=1", "dtypes=[float32]", "callbacks=headless", "repeats=2", "warmup=0"]
    found: dict[str, dict[str, float]] = {}
    words, out = [], tmp_path
    for name, more in (("plain", []), ("packed", [packed])):
        out = tmp_path / name
        words = [*common, *more, f"model.architecture={shape}", f"hydra.run.dir={out}"]
        call(*words, "plan=true", verb="bench")
        found[name] = json.loads((out / "bench.json").read_text())["measured"][0]["gib"]
    call(*words, "overwrite=true", verb="bench")
    (row,) = json.loads((out / "bench.json").read_text())["measured"]
    assert row["planned_gib"] == pytest.approx(sum(found["packed"].values()), rel=1e-6) and row["step"] > 0
    matrices = 4 * (4 * 64 * 64 + 3 * 64 * 128) / 2**30
    assert found["plain"]["weights"] - found["packed"]["weights"] == pytest.approx(matrices * (4 - 4.5 / 8), rel=1e-6)
    assert found["plain"]["gathered weights"] == 0 < found["packed"]["gathered weights"]


def test_a_gguf_file_from_the_command_line(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b"GGUF")
    words = [word for word in settings(local, tmp_path / "out", "logger=none") if not word.startswith("model.path")]
    assert "no GGUF file" in failure(capsys, *words, f"model.path={cut}")
    assert "neither a folder with a config.json nor a GGUF file" in failure(capsys, *words, f"model.path={cut}x")
