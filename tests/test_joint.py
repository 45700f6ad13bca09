"""Masks and LoRA together: identities at both ends, gradients against finite differences, and the main job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings
from conftest import tiny_batch, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.model import Subject


def with_adapters(name: str) -> tuple[Subject, PeftModel]:
    """A tiny model with LoRA on all linear modules, both factors drawn at random."""
    subject = Subject(tiny_model(name))
    targets = "all-linear" if name != "gpt2" else ["c_attn", "c_proj", "c_fc"]
    peft = get_peft_model(
        subject.model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2")
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for key, value in peft.named_parameters():
            if "lora_" in key:
                value.copy_(0.2 * torch.randn_like(value))
    return subject, peft.double()  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_both_ends_and_gradients(name: str) -> None:
    subject, peft = with_adapters(name)
    batch, layout = tiny_batch(), MaskLayout(subject.graph)
    live = MaskedModel(subject, live=True)
    references = References(subject, "zero").compute(batch)
    everything = torch.ones(layout.size, dtype=torch.float64)
    logits = live(layout.dense(everything), batch.clean, references.ablated, batch.positions)
    assert torch.allclose(logits, subject.logits(batch.clean, batch.positions), atol=1e-10)
    masks = torch.rand(layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded = MaskedModel(subject)(layout.dense(masks), batch.clean, references.ablated, batch.positions)
    assert torch.allclose(
        live(layout.dense(masks), batch.clean, references.ablated, batch.positions), folded, atol=1e-10
    )

    trained = {key: value for key, value in peft.named_parameters() if value.requires_grad}
    weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss() -> torch.Tensor:
        return (live(layout.dense(masks), batch.clean, references.ablated, batch.positions) * weights).sum()

    gradients = torch.autograd.grad(loss(), list(trained.values()))
    for (key, value), gradient in zip(trained.items(), gradients, strict=True):
        place = tuple(int(i) for i in (gradient.abs() == gradient.abs().max()).nonzero()[0])
        found = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                value[place] += step
                found.append(float(loss()))
                value[place] -= step
        assert float(gradient[place]) == pytest.approx((found[0] - found[1]) / 2e-5, rel=1e-5, abs=1e-8), key


def test_factors_of_float32_beside_a_base_of_half_precision() -> None:
    """As PEFT has them, if it is not told otherwise."""
    subject, peft = with_adapters("llama")
    for name, value in peft.named_parameters():
        value.data = value.data.to(torch.float32 if "lora_" in name else torch.float16)
    batch, layout = tiny_batch(), MaskLayout(subject.graph)
    ablated = References(subject, "zero").compute(batch).ablated
    masks = layout.dense(torch.rand(layout.size, generator=torch.Generator().manual_seed(0)))
    live, folded = (
        MaskedModel(subject, live=way)(masks, batch.clean, ablated, batch.positions) for way in (True, False)
    )
    assert live.dtype == torch.float16 and torch.allclose(live, folded, atol=0.02 * float(folded.abs().max()))


def test_the_main_job_trains_both_and_leaves_an_adapter(local: Path, tmp_path: Path) -> None:
    more = ["adapter=lora", "adapter.train=true", "adapter.lr=1e-2", "logger=none", "callbacks=none"]
    call(*settings(local, tmp_path, *more))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["n_edges"] == 9 and abs(result["full"]["kl"]["value"]) < 1e-6 and "attribution" not in result
    base = AutoModelForCausalLM.from_pretrained(local / "model")
    adapter = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    factors = [value for key, value in adapter.named_parameters() if "lora_B" in key]
    assert any(float(value.abs().max()) > 0 for value in factors)  # not of modules that no sampled circuit held


def test_an_adapter_that_is_not_trained_is_refused(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "adapter.train=true" in failure(capsys, *settings(local, tmp_path, "adapter=lora"))
    assert "means" in failure(capsys, *settings(local, tmp_path, "adapter=lora", "adapter.train=true", "ablation=mean"))
