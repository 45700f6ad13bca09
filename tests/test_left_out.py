"""What a CPU leaves out of the masked forward changes nothing: tokens, cut edges, gradients that nobody asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from brute_force import masked_logits
from conftest import CONFIGS, covering, tiny_model

from circuitlit import products
from circuitlit.discover.gates import HardConcrete, Sampler, logistic_noise
from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.graph import MaskLayout
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import MaskedModel, References, forward, kernels, mean_writers, sparse
from circuitlit.masked.ablation import KINDS
from circuitlit.masked.tokens import needed_tokens
from circuitlit.model import Subject
from circuitlit.objective import kl_divergence
from circuitlit.tasks.pair import Batch

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
SAME = (3, 0, 2)  # tokens at each row's start that both prompts share


@pytest.fixture
def alike(batch: Batch) -> Batch:
    """Pairs whose corrupted prompts begin as the clean ones do, and one with tokens behind its answers."""
    corrupted = batch.corrupted.clone()
    for row, count in enumerate(SAME):
        corrupted[row, :count] = batch.clean[row, :count]
        corrupted[row, count] = (batch.clean[row, count] + 1) % 40
    positions = batch.positions.clone()
    positions[2] -= 2  # the last two tokens are behind its answers
    return replace(batch, corrupted=corrupted, positions=positions)


def loss_and_gradient(
    subject: Subject, batch: Batch, kind: str, masks: torch.Tensor, roles: tuple[str, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    constants = mean_writers(subject, [batch]) if kind in ("mean", "optimal") else None
    reference = References(subject, kind, constants).compute(batch)  # type: ignore[arg-type]
    loss = MaskedLoss(MaskedModel(subject, panel=1), MaskLayout(subject.graph, roles), kl_divergence)
    masks = masks.clone().requires_grad_()
    value = loss(masks, batch, reference)
    return value.detach(), torch.autograd.grad(value, masks)[0]


@pytest.mark.parametrize("subject,kind,density", covering(CONFIGS, KINDS, [1.0, 0.1]), indirect=["subject"])
def test_tokens_and_cut_edges_left_out_change_nothing(
    subject: Subject, alike: Batch, kind: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = torch.rand(2, subject.graph.n_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    masks = drawn[0] * (drawn[1] < density)
    found = loss_and_gradient(subject, alike, kind, masks)
    monkeypatch.setattr(forward, "needed_tokens", lambda *args: None)
    monkeypatch.setattr(sparse, "suits", lambda *args: False)
    for one, other in zip(found, loss_and_gradient(subject, alike, kind, masks), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)
    assert found[1].abs().max() > 1e-6


def test_a_shared_start_is_left_out_and_brute_force_agrees(subject: Subject, alike: Batch) -> None:
    masks = torch.rand(subject.graph.n_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    reference = References(subject, "interchange").compute(alike)
    assert reference.shared is not None and reference.shared.tolist() == list(SAME)
    tokens = needed_tokens(alike.clean.shape[1], alike.positions, reference.shared)
    assert tokens is not None and len(tokens.past) > 0
    assert len(tokens.live) + len(tokens.past) == alike.clean.numel() - 2
    dense = MaskLayout(subject.graph).dense(masks)
    found = MaskedModel(subject)(dense, alike.clean, reference.ablated, alike.positions, shared=reference.shared)
    torch.testing.assert_close(found, masked_logits(subject, alike, dense[0]), **TIGHT)


def test_roles_find_their_tokens(subject: Subject, alike: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = ("other", "name", "end")
    masks = torch.rand(3 * subject.graph.n_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = loss_and_gradient(subject, alike, "interchange", masks, roles)
    monkeypatch.setattr(forward, "needed_tokens", lambda *args: None)
    for one, other in zip(found, loss_and_gradient(subject, alike, "interchange", masks, roles), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_mixing_is_mixing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    deltas, grad = (torch.randn(n, 5, 2000, generator=draw, dtype=dtype) for n in (30, 20))  # more than one piece
    masks = torch.rand(1, 20, 30, generator=draw, dtype=dtype) * (torch.rand(20, 30, generator=draw) < 0.08)
    masks[0, 3, :2] = 1
    assert sparse.suits(masks[0], deltas)

    def everything(between: bool) -> list[torch.Tensor]:
        out, grad_deltas = torch.ones_like(grad), torch.ones_like(deltas)
        kernels.mix(out, masks, deltas)
        written = torch.full_like(grad, torch.nan)
        kernels.mix(written, masks, deltas, add=False)
        return [out, written, kernels.mix_backward(grad, masks, deltas, grad_deltas, None, between), grad_deltas]

    found, partly = everything(False), everything(True)
    monkeypatch.setattr(sparse, "suits", lambda *args: False)
    monkeypatch.setattr(products, "suits", lambda *args: False)
    expected = everything(False)
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else TIGHT
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    inside = (masks > 0) & (masks < 1)
    torch.testing.assert_close(partly[2], torch.where(inside, expected[2], 0), **tolerance)
    torch.testing.assert_close(partly[3], expected[3], **tolerance)


def test_gates_at_their_ends_have_no_gradient_to_leave_out(subject: Subject, alike: Batch) -> None:
    n_edges, made = subject.graph.n_edges, []
    log_alpha = 3 * torch.randn(n_edges, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 4
    noise, scale = logistic_noise(n_edges, 0, 0, 0, torch.device("cpu")).double(), torch.tensor(0.5)
    sampler = Sampler(HardConcrete(), True, torch.mean)
    masks = sampler(log_alpha, noise, scale)
    assert sampler.between and not replace(sampler, hard=True).between
    assert (masks == 0).any() and ((masks > 0) & (masks < 1)).any()
    loss = MaskedLoss(MaskedModel(subject), MaskLayout(subject.graph), kl_divergence)
    reference = References(subject, "interchange").compute(alike)
    for gate in (sampler, lambda *inputs: sampler(*inputs)):
        leaf = log_alpha.clone().requires_grad_()
        value = loss(leaf, alike, reference, gate, (noise, scale))
        made.append(torch.autograd.grad(value, leaf)[0])
    torch.testing.assert_close(*made, **TIGHT)
    assert made[0].abs().max() > 1e-8


def test_products_of_frozen_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in ((4, 50, 96), (64, 96), (64,)))
    assert products.suits(x, weight.t()) == products._available()
    x = x.transpose(0, 1).requires_grad_()
    for own in (weight, weight.t().contiguous().t(), torch.cat([weight, weight])[::2]):
        layer = torch.nn.Linear(96, 64).requires_grad_(False)
        layer.weight.data, layer.bias.data = own, bias
        expected = torch.nn.functional.linear(x, own, bias)
        with products.fast_products(x):
            found = layer(x)
            found += 0.0  # as PEFT adds an adapter
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        (one,), (other,) = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_weights_that_are_trained_keep_their_gradient() -> None:
    layer = torch.nn.Linear(300, 300)
    x = torch.randn(300, 300)
    with products.fast_products(x):
        layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0


def test_buffers_are_lent_to_one_run_at_a_time(batch: Batch) -> None:
    """Two runs whose backward passes are still to come do not share a buffer; one that is over leaves it behind."""
    subject = Subject(tiny_model("llama"))
    reference = References(subject, "interchange").compute(batch)
    model = MaskedModel(subject)
    masks = [torch.full((1, subject.graph.n_edges), z, dtype=torch.float64, requires_grad=True) for z in (0.3, 0.7)]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        dense = scatter_edges(subject.graph, flat)
        return model(dense, batch.clean, reference.ablated, batch.positions).square().sum()

    alone = [torch.autograd.grad(loss(flat), flat)[0] for flat in masks]
    assert len(model.rooms._free) == 2  # of the last run: its deltas and their gradient
    first, second = (loss(flat) for flat in masks)
    for value, flat, expected in ((second, masks[1], alone[1]), (first, masks[0], alone[0])):
        torch.testing.assert_close(torch.autograd.grad(value, flat)[0], expected, **TIGHT)


def test_products_are_tried_on_the_cpu_wherever_tensors_are_made() -> None:
    with torch.device("meta"):
        assert products._available.__wrapped__() == products._available()


def test_what_prompts_begin_with_is_computed_once(subject: Subject, alike: Batch) -> None:
    """Three tokens of both prompts, the last one an answer position of one pair: in the forward, and in the runs."""
    rows = {
        name: torch.cat([getattr(alike, name)[:1, :3].expand(3, -1), getattr(alike, name)[:, 3:]], 1)
        for name in ("clean", "corrupted", "roles")
    }
    rows["corrupted"][:, 2] = (rows["clean"][:, 2] + 1) % 40
    positions = torch.tensor([[3, 5], [2, 6], [4, 0]])
    batch = replace(alike, **rows, positions=positions)
    assert batch.alike == 3
    known = References(subject, "interchange")
    (apart, one), (once, other) = known.with_corrupted(batch), known.with_corrupted(batch, 3)
    for found, expected in ((once.teacher, apart.teacher), (other, one)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # references are float32
    for name, expected in vars(apart.ablated).items():
        torch.testing.assert_close(getattr(once.ablated, name), expected, **TIGHT)
    tokens = needed_tokens(alike.clean.shape[1], positions, apart.shared, 3)
    assert tokens is not None and tokens.source is not None and len(tokens.live) + len(tokens.past) <= 3 + 12
    drawn = torch.rand(subject.graph.n_edges, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    masks = MaskLayout(subject.graph).dense(drawn)
    found = MaskedModel(subject)(masks, batch.clean, apart.ablated, positions, shared=apart.shared, alike=3)
    torch.testing.assert_close(found, masked_logits(subject, batch, masks[0]), **TIGHT)
