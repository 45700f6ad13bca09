"""IA3: it starts as the base, learns, loads elsewhere, and its change is read as that of the scaled weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import tiny_batch, tiny_model
from peft import PeftModel

from circuitlit.compare import weight_changes
from circuitlit.errors import UserError
from circuitlit.finetune import adapted, ia3
from circuitlit.model import Subject, unwrap


def factors(model: PeftModel) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "ia3_l" in name]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_a_fresh_one_is_the_base_and_a_trained_one_is_the_scaled_weights(name: str) -> None:
    model = tiny_model(name)
    base, batch = Subject(copy.deepcopy(model)), tiny_batch()
    wrapped = adapted(model, ia3(model, 1))
    assert {p for p in wrapped.parameters() if p.requires_grad} == set(factors(wrapped))
    before = base.logits(batch.clean, batch.positions)
    torch.testing.assert_close(Subject(unwrap(wrapped)).logits(batch.clean, batch.positions), before)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in factors(wrapped):
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    whole = copy.deepcopy(wrapped).merge_and_unload()
    tuned, merged = Subject(unwrap(wrapped)), Subject(whole)
    logits = tuned.logits(batch.clean, batch.positions)
    torch.testing.assert_close(logits, merged.logits(batch.clean, batch.positions))
    assert float((logits - before).abs().max()) > 1e-3
    for one, other in zip(weight_changes(base, tuned), weight_changes(base, merged), strict=True):
        assert one.name == other.name and one.change.norm == pytest.approx(other.change.norm, abs=1e-9)
    moved = {part.kind for part in weight_changes(base, tuned) if part.change.norm > 1e-9}
    assert moved - {"bias"} == ({"k", "v", "mlp"} if name == "llama" else {"q", "k", "v", "mlp"})


def test_it_learns_and_loads_elsewhere(tmp_path: Path) -> None:
    model, batch = tiny_model("llama"), tiny_batch(answers=1)
    wrapped = adapted(model, ia3(model, 1))
    optimizer = torch.optim.Adam(factors(wrapped), lr=0.05)
    losses = []
    for _ in range(20):
        logits = wrapped(input_ids=batch.clean).logits.gather(1, batch.positions[..., None].expand(-1, -1, 50))
        loss = torch.nn.functional.cross_entropy(logits[:, 0], batch.answer[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    wrapped.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    torch.testing.assert_close(loaded(input_ids=batch.clean).logits, wrapped.eval()(input_ids=batch.clean).logits)


def test_half_of_its_modules_is_refused() -> None:
    with pytest.raises(UserError, match="go together"):
        ia3(tiny_model("llama"), 1, target_modules=["k_proj"])
