"""Weight changes: figures by hand, planted changes, factors against products."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from circuitlit.compare import (
    LowRank,
    concentration,
    distribution,
    intruder_dimensions,
    matrix_change,
    module_intruders,
    weight_changes,
)
from circuitlit.compare.matrices import right_singular_vectors
from circuitlit.compare.weight_figures import node_changes
from circuitlit.finetune import adalora, adapted, lora
from circuitlit.model import Subject, unwrap

FIELDS = ("norm", "base_norm", "spectral", "stable_rank", "effective_rank", "rank", "unchanged", "still", "hoyer")


def randomised(model: PeftModel, seed: int = 3) -> PeftModel:
    """Adapters with random weights, so that they change something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_figures_from_factors_are_those_of_the_product(name: str, kind: str) -> None:
    base = Subject(tiny_model(name))
    wrapped = randomised(adapted(tiny_model(name), {"lora": lora, "adalora": adalora}[kind](base.model, 20)))
    whole = tiny_model(name)
    modules = dict(whole.named_modules())
    with torch.no_grad():
        for path, module in wrapped.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                modules[path].weight += module.get_delta_weight("default")
    tuned = Subject(unwrap(wrapped))
    thin, full = list(weight_changes(base, tuned)), list(weight_changes(base, Subject(whole)))
    assert len(thin) == len(full) > 20
    for one, other in zip(thin, full, strict=True):
        assert (one.name, one.kind, one.nodes, one.numel) == (other.name, other.kind, other.nodes, other.numel)
        for field in FIELDS:
            assert getattr(one.change, field) == pytest.approx(getattr(other.change, field), rel=1e-5, abs=1e-6), field
        assert one.change.rank <= (8 if kind == "lora" else 12)
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())
    near = [figures.relative or 0.0 for figures in (part.change for part in thin) if figures.norm]
    assert min(near) > 0


def test_adapters_that_are_switched_off_change_nothing() -> None:
    wrapped = randomised(adapted(tiny_model("gpt2"), lora(tiny_model("gpt2"), 20)))
    wrapped.base_model.disable_adapter_layers()
    changes = list(weight_changes(Subject(tiny_model("gpt2")), Subject(unwrap(wrapped))))
    assert max(one.change.norm for one in changes) < 1e-9


def test_parts_hold_every_weight_once() -> None:
    for name in ("gpt2", "llama", "gpt_neox", "qwen3"):
        subject = Subject(tiny_model(name))
        parts = list(weight_changes(subject, subject))
        assert sum(part.numel for part in parts) == sum(p.numel() for p in subject.model.parameters())
        assert all(part.change.norm == 0 and part.change.unchanged == 1 for part in parts)


def test_untouched_modules_do_not_change() -> None:
    base = Subject(tiny_model("llama"))
    config = LoraConfig(r=2, target_modules=r".*layers\.1\.self_attn\.(q|k)_proj", init_lora_weights=False)
    tuned = Subject(unwrap(get_peft_model(tiny_model("llama"), config)))
    for part in weight_changes(base, tuned):
        if part.layer == 1 and part.kind in "qk":
            assert part.change.rank <= 2 and part.change.norm > 0 and part.change.unchanged == 0
        else:
            assert (part.change.norm, part.change.unchanged, part.change.still, part.change.rank) == (0, 1, 1, 0)
    assert set(module_intruders(base, tuned).modules) == {"1.self_attn.q_proj", "1.self_attn.k_proj"}


def test_training_one_layer_changes_that_layer_only(local: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(local / "model")
    base = Subject(copy.deepcopy(model))
    block = model.transformer.h[1].requires_grad_(True)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=0.0)
    ids = torch.arange(1, 13).view(2, 6)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    changes = list(weight_changes(base, Subject(model)))
    spread = distribution(changes)
    assert spread["layer"].share == {"0": 0.0, "1": 1.0}
    assert spread["layer"].gini == pytest.approx(0.5) and spread["layer"].entropy == 0
    assert spread["kind"].share["embed"] == 0
    moved = node_changes(changes)
    assert all((value > 0) == (node in ("a1.h0", "a1.h1", "m1")) for node, value in moved.items())


def test_ranks_by_hand() -> None:
    change = matrix_change(torch.ones(6, 6), torch.eye(6))
    assert (change.rank, change.energy_rank) == (6, 6)
    assert change.effective_rank == pytest.approx(6) and change.stable_rank == pytest.approx(6)
    assert change.unchanged == pytest.approx(30 / 36) and change.relative == pytest.approx(math.sqrt(6) / 6)
    lopsided = matrix_change(torch.ones(2, 3), torch.tensor([[3.0, 0, 0], [0, 4.0, 0]]))
    assert (lopsided.norm, lopsided.spectral) == (pytest.approx(5), pytest.approx(4))
    assert lopsided.stable_rank == pytest.approx(25 / 16)
    shares = (3 / 7, 4 / 7)
    assert lopsided.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    one = torch.zeros(4, 4)
    one[1, 2] = 7
    assert matrix_change(torch.ones(4, 4), one).hoyer == pytest.approx(1)
    assert matrix_change(torch.ones(4, 4), torch.ones(4, 4)).hoyer == pytest.approx(0)
    random = torch.randn(7, 5)
    small, large = (matrix_change(torch.ones(7, 5), scale * random) for scale in (1.0, 1e3))
    assert small.effective_rank == pytest.approx(large.effective_rank, rel=1e-6)


def test_rounding_is_not_a_change() -> None:
    base = torch.tensor([[1.0, 1000.0, 1e-3]], dtype=torch.bfloat16)
    change = matrix_change(base, torch.tensor([[0.004, 4.0, 1e-4]], dtype=torch.bfloat16))
    assert change.unchanged == 0 and change.still == pytest.approx(2 / 3)


def test_low_rank_values_by_hand() -> None:
    values = LowRank(
        torch.tensor([[2.0, 0], [0, 3], [0, 0]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 5, 0]])
    ).singular_values()
    torch.testing.assert_close(values, torch.tensor([15.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_singular_vectors_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.svd(matrix, full_matrices=False).Vh
    cosines = (right_singular_vectors(matrix) * expected).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(5 + (shape == (6, 6)), dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_an_intruder_is_counted() -> None:
    base = torch.diag(torch.tensor([5.0, 4, 3, 0, 0, 0]))[:3]  # its directions are the first three axes
    direction = torch.zeros(6)
    direction[5] = 1
    added = base + 50 * torch.outer(torch.tensor([1.0, 0, 0]), direction)
    assert intruder_dimensions(base, base, 3, (0.5, 0.9)) == [0, 0]
    assert intruder_dimensions(base, added, 3, (0.05, 0.5)) == [0, 1]


def test_concentration_by_hand() -> None:
    even, single = concentration(torch.ones(10)), concentration(torch.tensor([0.0] * 9 + [1.0]))
    assert (even.gini, even.entropy, even.top_share) == (
        pytest.approx(0),
        pytest.approx(1),
        pytest.approx(0.1),
    )
    assert (single.gini, single.entropy, single.top_share) == (pytest.approx(0.9), 0, 1)
    assert concentration(torch.zeros(3)).gini is None
