"""Adapters of every kind: analysed exactly as PEFT runs them, frozen or trained, or refused by their type's name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from cli import failure
from conftest import tiny_batch, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitlit import UserError, load_subject
from circuitlit.finetune import adapted
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.ablation import Kind
from circuitlit.model import Subject, unwrap
from circuitlit.model.adapters import has_adapters
from circuitlit.model.slices import plain_copy

SOME = {"target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
Q = {"target_modules": ["q_proj"]}
WITH = {
    "lora": lambda: LoraConfig(r=2, **SOME),
    "rslora": lambda: LoraConfig(r=2, use_rslora=True, **SOME),
    "dora": lambda: LoraConfig(r=2, use_dora=True, **SOME),
    "lora with bias": lambda: LoraConfig(r=2, lora_bias=True, **SOME),
    "lora and whole modules": lambda: LoraConfig(
        r=2, modules_to_save=["lm_head", "embed_tokens", "input_layernorm", "k_proj"], **SOME
    ),
    "lora and a whole attention": lambda: LoraConfig(r=2, modules_to_save=["self_attn"], target_modules=["up_proj"]),
    "lora and tokens": lambda: LoraConfig(r=2, trainable_token_indices=[3, 4], **SOME),
    "lora on both ends": lambda: LoraConfig(r=2, target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 4, 5]),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "up_proj"], feedforward_modules=["up_proj"]),
    "loha": lambda: peft.LoHaConfig(r=2, **SOME),
    "lokr": lambda: peft.LoKrConfig(r=2, **SOME),
    "vera": lambda: peft.VeraConfig(r=2, **Q),
    "adalora": lambda: peft.AdaLoraConfig(init_r=2, target_r=2, total_step=10, **SOME),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, **Q),
    "hra": lambda: peft.HRAConfig(r=2, **SOME),
    "miss": lambda: peft.MissConfig(r=2, **SOME),
    "randlora": lambda: peft.RandLoraConfig(r=2, **Q),
    "vblora": lambda: peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=4, topk=2, **Q),
    "shira": lambda: peft.ShiraConfig(r=2, **SOME),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, **Q),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20, **SOME),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=20, **Q),
    "delora": lambda: peft.DeloraConfig(r=2, **SOME),
    "gralora": lambda: peft.GraloraConfig(r=2, gralora_k=2, **Q),
    "osf": lambda: peft.OSFConfig(**Q),
    "hira": lambda: peft.HiraConfig(r=2, **SOME),
    "tinylora": lambda: peft.TinyLoraConfig(r=2, **Q),
    "unilora": lambda: peft.UniLoraConfig(r=2, **Q),
    "glora": lambda: peft.GloraConfig(r=2, **Q),
    "beft": lambda: peft.BeftConfig(**SOME),
    "peanut": lambda: peft.PeanutConfig(r=2, **Q),
    "supertuning": lambda: peft.SupertuningConfig(**Q),
    "pvera": lambda: peft.PveraConfig(r=2, **Q),
    "lora with kasa": lambda: LoraConfig(r=2, kasa_config=peft.KasaConfig(), **SOME),
    "lora with velora": lambda: LoraConfig(r=2, velora_config=peft.VeloraConfig(), **SOME),
    "road": lambda: peft.RoadConfig(variant="road_1", group_size=2, **SOME),
}
OUTSIDE = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "P_TUNING": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    "MULTITASK_PROMPT_TUNING": lambda: peft.MultitaskPromptTuningConfig(num_virtual_tokens=3, num_tasks=2),
    "CPT": lambda: peft.CPTConfig(
        cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3], task_type="CAUSAL_LM"
    ),
    "ADAPTION_PROMPT": lambda: peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2),
    "LORA": lambda: LoraConfig(r=2, alora_invocation_tokens=[3, 4], **SOME),
    "CARTRIDGE": lambda: peft.CartridgeConfig(num_virtual_tokens=3),
    "C3A": lambda: peft.C3AConfig(block_size=4, **Q),
    "DEFT": lambda: peft.DeftConfig(**Q),
    "SHADOW": lambda: peft.ShadowConfig(**Q),
    "LILY": lambda: peft.LilyConfig(r=2, stride_A=1, num_B=2, target_modules=["q_proj", "v_proj"]),
    "POLY": lambda: peft.PolyConfig(r=2, n_tasks=2, **SOME),
}


def trained(config: Any) -> PeftModel:
    """A tiny Llama with an adapter that has moved away from doing nothing."""
    config.task_type = "CAUSAL_LM"
    model = tiny_model("llama")
    model.name_or_path = "tiny"
    return moved(get_peft_model(model, config).double())  # type: ignore[arg-type]


def moved(wrapped: PeftModel) -> PeftModel:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:  # AdaLoRA's count of ranks
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return wrapped


def answers(model: Any) -> Tensor:
    """PEFT's own logits where the batch has its answers."""
    batch = tiny_batch()
    with torch.no_grad():
        logits = model.eval()(input_ids=batch.clean, use_cache=False).logits
    return torch.take_along_dim(logits, batch.positions[..., None], 1)


def all_on(subject: Subject, live: bool = False, kind: Kind = "interchange") -> Tensor:
    """The masked model's logits with every edge."""
    batch, layout = tiny_batch(), MaskLayout(subject.graph)
    ablated = References(subject, kind).compute(batch).ablated
    masks = layout.dense(torch.ones(layout.size, dtype=torch.float64))
    return MaskedModel(subject, live=live)(masks, batch.clean, ablated, batch.positions)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-6)  # some kinds compute in float32


@pytest.fixture(scope="module")
def base(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny Llama that the adapters are for."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    for file in (local / "model").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def loaded(base: Path, adapter: Path) -> Subject:
    return load_subject(base, adapter=str(adapter), dtype="float64")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WITH)
def test_what_changes_weights_is_analysed_as_peft_runs_it(kind: str, base: Path, tmp_path: Path) -> None:
    wrapped = trained(WITH[kind]())
    bare = answers(tiny_model("llama"))
    wrapped.save_pretrained(str(tmp_path), save_embedding_layers=False)
    expected = answers(wrapped)
    assert float((expected - bare).abs().max()) > 1e-2
    live = load_subject(wrapped)
    assert same(all_on(live), expected)
    assert same(all_on(live, live=True), expected)
    assert same(all_on(loaded(base, tmp_path)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_acts_outside_the_weights_is_refused_by_type(kind: str, base: Path, tmp_path: Path) -> None:
    words = "no affine map" if kind in ("LILY", "C3A", "DEFT") else f"the adapter \\({kind}\\)"
    wrapped = trained(OUTSIDE[kind]())
    with pytest.raises(UserError, match=words):
        load_subject(wrapped)
    with pytest.raises(UserError, match=words):
        Subject(wrapped)
    wrapped.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=words):
        loaded(base, tmp_path)
    config = OUTSIDE[kind]()
    config.task_type = "CAUSAL_LM"
    with pytest.raises(UserError, match=words):
        adapted(tiny_model("llama"), config)


def test_fresh_adapters_are_left_untouched_by_their_check() -> None:
    one, other = (LoraConfig(r=2, task_type="CAUSAL_LM", **SOME) for _ in range(2))
    torch.manual_seed(0)
    checked = adapted(tiny_model("llama"), one)
    torch.manual_seed(0)
    plain = get_peft_model(tiny_model("llama"), other)
    assert all(torch.equal(a, b) for a, b in zip(checked.parameters(), plain.parameters(), strict=True))


def two(active: list[str]) -> PeftModel:
    wrapped = trained(LoraConfig(r=2, **SOME))
    wrapped.add_adapter("other", LoraConfig(r=3, lora_alpha=5, target_modules=["k_proj", "v_proj"]))
    moved(wrapped.double())
    wrapped.base_model.set_adapter(active)
    return moved(wrapped)


def disabled() -> PeftModel:
    wrapped = trained(LoraConfig(r=2, **SOME))
    wrapped.base_model.disable_adapter_layers()
    return wrapped


def merged() -> PeftModel:
    wrapped = trained(LoraConfig(r=2, **SOME))
    wrapped.merge_adapter()
    return wrapped


def without_scale() -> PeftModel:
    wrapped = trained(LoraConfig(r=2, **SOME))
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = 0.0
    return wrapped


STATES = {
    "another is active": lambda: two(["other"]),
    "both are active": lambda: two(["default", "other"]),
    "disabled": disabled,
    "merged": merged,
    "scale 0": without_scale,
    "inference mode": lambda: trained(LoraConfig(r=2, inference_mode=True, init_lora_weights=False, **SOME)),
    "dropout": lambda: trained(LoraConfig(r=2, lora_dropout=0.5, **SOME)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("state", STATES)
def test_a_live_adapter_is_analysed_in_the_state_it_is_in(state: str) -> None:
    wrapped = STATES[state]()
    expected, wrapped = answers(copy.deepcopy(wrapped)), wrapped.train()
    assert same(all_on(load_subject(wrapped)), expected)
    assert same(all_on(load_subject(wrapped), live=True), expected)
    assert same(all_on(Subject(unwrap(wrapped))), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "lora with bias", "dora", "ia3", "loha", "vera", "hra"])
def test_gradients_of_adapters_of_any_kind_are_pefts_own(kind: str) -> None:
    subject = Subject(tiny_model("llama"))
    config = WITH[kind]()
    config.task_type = "CAUSAL_LM"
    wrapped = moved(get_peft_model(subject.model, config).double())  # type: ignore[arg-type]
    batch = tiny_batch()
    trainable = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(all_on(subject, live=True, kind="zero").square().sum(), trainable)
    logits = wrapped.eval()(input_ids=batch.clean, use_cache=False).logits
    said = torch.take_along_dim(logits, batch.positions[..., None], 1)
    theirs = torch.autograd.grad(said.square().sum(), trainable)
    for one, other in zip(ours, theirs, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def saved(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> Path:
    """A LoRA folder whose weights or configuration were changed by hand."""
    trained(LoraConfig(r=2, **SOME)).save_pretrained(str(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    change(weights, config)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def cut(folder: Path, share: float) -> Path:
    file = saved(folder, lambda weights, config: None) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    return folder


def emptied(folder: Path) -> Path:
    (saved(folder, lambda weights, config: None) / "adapter_config.json").unlink()
    return folder


def renamed(weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in weights if "up_proj" in name]:
        weights[name.replace("up_proj", "fc_up")] = weights.pop(name)


def wider(weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name, value in weights.items():
        weights[name] = torch.cat([value, value], 1)


def weightless(folder: Path) -> Path:
    (cut(folder, 0.7) / "adapter_model.safetensors").unlink()
    return folder


DAMAGED = {
    "renamed": (lambda f: saved(f, renamed), "has no weights for base_model.model.model.layers.0.mlp.up_proj"),
    "surplus": (
        lambda f: saved(f, lambda w, c: w.update({"base_model.model.extra.lora_A.weight": torch.ones(2, 2)})),
        "holds base_model.model.extra.lora_A.*no place for",
    ),
    "fewer targets": (lambda f: saved(f, lambda w, c: c.update(target_modules=["q_proj"])), "no place for"),
    "of another width": (lambda f: saved(f, wider), "could not be loaded .*size mismatch"),
    "of another rank": (lambda f: saved(f, lambda w, c: c.update(r=3)), "could not be loaded .*size mismatch"),
    "of an unknown type": (lambda f: saved(f, lambda w, c: c.update(peft_type="LOTA")), "could not be loaded .*LOTA"),
    "not finite": (lambda f: saved(f, lambda w, c: w[next(iter(w))].fill_(torch.nan)), "holds NaN or infinite"),
    "cut off": (lambda f: cut(f, 0.7), "adapter_model.safetensors ends at byte"),
    "empty": (lambda f: cut(f, 0.0), "adapter_model.safetensors ends at byte 0"),
    "without weights": (weightless, "has no adapter_model.safetensors; save it again"),
    "without a configuration": (emptied, "has no adapter_config.json"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DAMAGED)
def test_an_adapter_that_is_not_whole_is_refused_by_name(kind: str, base: Path, tmp_path: Path) -> None:
    make, words = DAMAGED[kind]
    with pytest.raises(UserError, match=words) as found:
        loaded(base, make(tmp_path / "adapter"))
    assert "\n" not in str(found.value)


def test_an_adapter_in_the_wrong_place_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapter"
    wrapped = trained(WITH["lora"]())
    wrapped.save_pretrained(folder)
    with pytest.raises(UserError, match="is an adapter, not a model; load its base model"):
        load_subject(folder)
    with pytest.raises(UserError, match="the model has an adapter already"):
        load_subject(wrapped, adapter=str(folder))
    words = ["model=local", f"model.path={folder}", f"hydra.run.dir={tmp_path}/out"]
    assert f"and it with adapter=peft adapter.path={folder}" in failure(capsys, *words)


@pytest.mark.parametrize("state", ["on", "off", "merged", "merged and off"])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "norms", "lora and whole modules"])
def test_a_plain_copy_does_what_the_model_does(kind: str, state: str) -> None:
    """Also where the adapter is switched off: it was merged then, and weights of another model were compared."""
    wrapped = get_peft_model(tiny_model("llama"), WITH[kind]())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    if "merged" in state:
        wrapped.merge_adapter()
    if "off" in state:
        wrapped.base_model.disable_adapter_layers()
    ids = tiny_batch().clean
    expected = wrapped.eval()(input_ids=ids).logits
    found = plain_copy(Subject(unwrap(wrapped)))
    assert not has_adapters(found.model)
    torch.testing.assert_close(found.model(input_ids=ids).logits, expected)
