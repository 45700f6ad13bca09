"""Identities of the masked forward, in float64, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brute_force import masked_logits
from conftest import CONFIGS, tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

from circuitlit.errors import UserError
from circuitlit.graph import MaskLayout, reachable_edges
from circuitlit.masked import MaskedModel, ablated_run, mean_writers, run_writers
from circuitlit.model import Subject, anatomy_of, unwrap
from circuitlit.tasks.pair import Batch

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def random_masks(subject: Subject, seed: int = 0, roles: tuple[str, ...] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(MaskLayout(subject.graph, roles).size, generator=generator, dtype=torch.float64)


def run(subject: Subject, batch: Batch, flat: torch.Tensor, kind="interchange", roles=(), **options) -> torch.Tensor:
    mean = mean_writers(subject, [batch]) if kind == "mean" else None
    ablated = ablated_run(subject, batch, kind, mean)
    masks = MaskLayout(subject.graph, roles).dense(flat)
    token_roles = batch.roles if roles else None
    return MaskedModel(subject, **options)(masks, batch.clean, ablated, batch.positions, token_roles)


def test_all_on_is_the_stock_model(subject: Subject, batch: Batch) -> None:
    masks = torch.ones(subject.graph.n_edges, dtype=torch.float64)
    expected = subject.model(batch.clean).logits
    expected = torch.take_along_dim(expected, batch.positions[..., None], 1)
    for kind in ("interchange", "zero", "mean"):
        torch.testing.assert_close(run(subject, batch, masks, kind), expected, **TIGHT)


def test_all_off_is_the_corrupted_run(subject: Subject, batch: Batch) -> None:
    masks = torch.zeros(subject.graph.n_edges, dtype=torch.float64)
    expected = subject.model(batch.corrupted).logits
    expected = torch.take_along_dim(expected, batch.positions[..., None], 1)
    torch.testing.assert_close(run(subject, batch, masks), expected, **TIGHT)


def test_all_off_with_zero_ablation_forgets_the_tokens(subject: Subject, batch: Batch) -> None:
    logits = run(subject, batch, torch.zeros(subject.graph.n_edges, dtype=torch.float64), "zero")
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), **TIGHT)


def test_any_masks_equal_brute_force(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    dense = MaskLayout(subject.graph).dense(flat)[0]
    expected = masked_logits(subject, batch, dense)
    for panel in (1, 2, 5):
        torch.testing.assert_close(run(subject, batch, flat, panel=panel), expected, **TIGHT)


def test_gradient_is_the_finite_difference(subject: Subject, batch: Batch) -> None:
    """However much is recomputed, and however many blocks share a product."""
    flat = random_masks(subject).requires_grad_()
    weights = torch.randn(3, 2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(masks: torch.Tensor, **way: Any) -> torch.Tensor:
        return (run(subject, batch, masks, **way).log_softmax(-1) * weights).sum()

    (grad,) = torch.autograd.grad(loss(flat), flat)
    for recompute, panel in ((False, 2), (True, 1), ("reads", 2)):
        (same,) = torch.autograd.grad(loss(flat, recompute=recompute, panel=panel), flat)
        torch.testing.assert_close(same, grad, **TIGHT)
    step = 1e-5
    for edge in torch.randperm(subject.graph.n_edges, generator=torch.Generator().manual_seed(2))[:4].tolist():
        nudge = torch.zeros_like(flat)
        nudge[edge] = step
        with torch.no_grad():
            expected = (loss(flat + nudge) - loss(flat - nudge)) / (2 * step)
        torch.testing.assert_close(grad[edge], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", [{}, {"recompute": True}, {"recompute": "reads"}])
def test_a_second_backward_through_one_forward_is_the_first(way: dict, batch: Batch) -> None:
    """Also where the first forward of all is one of a validation, which knows no autograd."""
    subject = Subject(tiny_model("gpt2"))
    layout, model = MaskLayout(subject.graph), MaskedModel(subject, **way)
    ablated, flat = ablated_run(subject, batch, "interchange"), random_masks(subject).requires_grad_()
    with torch.inference_mode():
        validated = model(layout.dense(flat), batch.clean, ablated, batch.positions)
    logits = model(layout.dense(flat), batch.clean, ablated, batch.positions)
    torch.testing.assert_close(logits, validated.clone(), **TIGHT)
    one, other = (torch.autograd.grad(logits[0, 0, token], flat, retain_graph=True)[0] for token in (1, 2))
    (both,) = torch.autograd.grad(logits[0, 0, 1:3].sum(), flat)
    torch.testing.assert_close(one + other, both, **TIGHT)


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputing_changes_no_gradient_in_float32(name: str) -> None:
    """In float64 the library's own RMS norm runs, which rounds; in float32 ours does, whose input is read again."""
    subject, batch = Subject(tiny_model(name).float()), tiny_batch()
    flat = random_masks(subject).float().requires_grad_()

    def grad(**way: Any) -> torch.Tensor:
        return torch.autograd.grad(run(subject, batch, flat, **way).log_softmax(-1).square().sum(), flat)[0]

    expected = grad()
    for recompute, panel in ((False, 2), (True, 1), ("reads", 2)):
        found = grad(recompute=recompute, panel=panel)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_rows_do_not_see_each_other(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    together = run(subject, batch, flat)
    one = Batch(**{name: value[1:2] for name, value in vars(batch).items()})
    torch.testing.assert_close(run(subject, one, flat), together[1:2], **TIGHT)


def test_padding_changes_nothing(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    padded = Batch(**vars(batch))
    for name in ("clean", "corrupted", "roles"):
        setattr(padded, name, torch.nn.functional.pad(getattr(batch, name), (0, 4)))
    torch.testing.assert_close(run(subject, padded, flat), run(subject, batch, flat), **TIGHT)


def test_roles_with_equal_masks_are_one_mask(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    roles = ("other", "subject", "end")
    expected = run(subject, batch, flat)
    torch.testing.assert_close(run(subject, batch, flat.repeat(3), roles=roles), expected, **TIGHT)


def test_role_gradients_add_up(subject: Subject, batch: Batch) -> None:
    roles = ("other", "subject", "end")
    one = random_masks(subject).requires_grad_()
    three = one.detach().repeat(3).requires_grad_()
    (single,) = torch.autograd.grad(run(subject, batch, one).log_softmax(-1)[..., 0].sum(), one)
    (split,) = torch.autograd.grad(run(subject, batch, three, roles=roles).log_softmax(-1)[..., 0].sum(), three)
    torch.testing.assert_close(split.view(3, -1).sum(0), single, **TIGHT)
    assert bool((split.view(3, -1)[0] != split.view(3, -1)[1]).any())


def test_node_masks_multiply_edges(subject: Subject) -> None:
    layout = MaskLayout(subject.graph, sites="both")
    flat = torch.rand(layout.size, dtype=torch.float64)
    name = subject.graph.edge_name(17)
    writer = subject.graph.writers.index(name.split("->")[0])
    expected = flat[17] * flat[subject.graph.n_edges + writer]
    torch.testing.assert_close(layout.edges(flat)[0, 17], expected)


def test_unreachable_edges_change_nothing(subject: Subject, batch: Batch) -> None:
    generator = torch.Generator().manual_seed(3)
    kept = torch.rand(1, subject.graph.n_edges, generator=generator) < 0.12
    reachable = reachable_edges(subject.graph, kept)
    assert 0 < int(reachable.sum()) < int(kept.sum())
    whole, pruned = (run(subject, batch, mask[0].double()) for mask in (kept, reachable))
    torch.testing.assert_close(whole, pruned, **TIGHT)


@pytest.mark.parametrize("name,targets", [("llama", ["q_proj", "o_proj", "up_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_lora_model_keeps_the_identities(name: str, targets: list[str], batch: Batch) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(name), LoraConfig(r=3, target_modules=targets, fan_in_fan_out=name == "gpt2"))
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    plain = tiny_model(name)(batch.clean).logits
    adapted = model(batch.clean).logits
    assert float((plain - adapted).abs().max()) > 1e-2
    subject = Subject(unwrap(model))
    test_all_on_is_the_stock_model(subject, batch)
    test_all_off_is_the_corrupted_run(subject, batch)


def test_no_hook_outlives_its_block(subject: Subject, batch: Batch) -> None:
    with pytest.raises(UserError, match="beyond the model's embedding"):
        ablated_run(subject, Batch(**{**vars(batch), "corrupted": batch.corrupted + 10_000}), "interchange")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_float32_within_its_error() -> None:
    subject = Subject(tiny_model("llama").float())
    batch = tiny_batch()
    logits = run(subject, batch, torch.ones(subject.graph.n_edges))
    expected = torch.take_along_dim(subject.model(batch.clean).logits, batch.positions[..., None], 1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name,numbers",
    [
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"word_embed_proj_dim": 12}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_variants_that_break_the_sum_of_writers_are_refused(name: str, numbers: dict) -> None:
    with pytest.raises(UserError, match=r"this (OPT )?model"):
        anatomy_of(AutoConfig.for_model(name, **{**CONFIGS[name], **numbers}))


def test_a_bias_ahead_of_a_norm_behind_the_attention_is_refused() -> None:
    with pytest.raises(UserError, match="belongs to no head; this model has one"):
        Subject(tiny_model("gemma2", attention_bias=True))


def test_heads_behind_a_norm_write_what_it_puts_out(batch: Batch) -> None:
    """Gemma: the heads' own writes, in the scale of their run, add up to the output of the norm behind them."""
    subject = Subject(tiny_model("gemma2"))
    block = subject.anatomy.blocks(subject.model)[1]
    caught: list[torch.Tensor] = []
    handle = block.post_attention_layernorm.register_forward_hook(lambda module, args, output: caught.append(output))
    heads = run_writers(subject, batch.clean).heads[:, 1].unflatten(-1, (4, -1))
    handle.remove()
    writes = torch.einsum("bphi,hid->bphd", heads, subject.anatomy.parts(block, subject.graph).out)
    torch.testing.assert_close(writes.sum(2), caught[0], **TIGHT)
