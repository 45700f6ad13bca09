"""What one step costs, counted instead of timed: an accidental product, copy or launch fails here."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import CONFIGS, VOCAB, tiny_batch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.discover import MaskedLoss
from circuitlit.graph import MaskLayout
from circuitlit.masked import MaskedModel, References
from circuitlit.masked.forward import Recompute
from circuitlit.masked.projection import Projection
from circuitlit.model import Subject
from circuitlit.model.norms import recognise
from circuitlit.objective import kl_divergence

PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"}
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"}
VIEWS |= {"alias", "detach", "as_strided", "split", "split_with_sizes", "unflatten", "_reshape_alias", "unbind"}
DEPTH = {"gpt2": "n_layer"}
# matrix products of one MLP, forward and backward
MLP = {"gpt2": 4, "gpt_neox": 4, "gpt_neox_sequential": 4, "llama": 6, "mistral": 6, "qwen2": 6, "qwen3": 6, "opt": 4}


class Counting(TorchDispatchMode):
    """Counts the operators that do something."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        return sum(self.calls[name] for name in PRODUCTS)


def model_of(name: str, layers: int, **changes: object) -> Subject:
    torch.manual_seed(0)
    numbers = {**CONFIGS[name], DEPTH.get(name, "num_hidden_layers"): layers, **changes}
    config = AutoConfig.for_model(name.removesuffix("_sequential"), **numbers)
    return Subject(AutoModelForCausalLM.from_config(config).double())


def step(subject: Subject, panel: int, recompute: Recompute = False) -> tuple[Counting, list[int]]:
    """One forward and backward with cached references: its operators, and the sizes of what it saved."""
    loss = MaskedLoss(MaskedModel(subject, panel, recompute), MaskLayout(subject.graph), kl_divergence)
    batch = tiny_batch()
    reference = References(subject, "interchange")(batch)
    masks = torch.rand(loss.layout.size, dtype=torch.float64).requires_grad_()
    saved: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    with Counting() as counting, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        torch.autograd.grad(loss(masks, batch, reference), masks)
    return counting, list(saved.values())


@pytest.mark.parametrize("name", MLP)
@pytest.mark.parametrize("panel", [1, 3])
def test_matrix_products(name: str, panel: int) -> None:
    """Reads of the ledger (each three products), one projection of q, k and v, heads' outputs, MLP, logits."""
    layers = 3
    subject = model_of(name, layers)
    reads = layers if subject.graph.parallel else 2 * layers  # a panel's first block reads in `open_panel`
    shifts = 3 * layers if any(isinstance(m, torch.nn.LayerNorm) for m in subject.model.modules()) else 0
    ends = 2 + 2  # the logits' read and the unembedding, forward and backward
    expected = 3 * reads + layers * (2 + 2 + 1 + MLP[name]) + shifts + ends
    counting, _ = step(subject, panel)
    assert counting.products == expected, f"{name} {counting.products} {expected}"


@pytest.mark.parametrize("name", MLP)
def test_launches_grow_with_layers_alone(name: str) -> None:
    counts = {}
    for layers in (2, 4):
        for panel in (1, 4):
            counting, _ = step(model_of(name, layers), panel)
            counts[layers, panel] = sum(counting.calls.values())
    a_layer = (counts[4, 4] - counts[2, 4]) / 2
    assert a_layer <= (165 if name == "qwen3" else 125), a_layer
    assert abs(counts[4, 1] - counts[4, 4]) <= 0.1 * counts[4, 4]


@pytest.mark.parametrize("name", MLP)
def test_streams_are_saved_once(name: str) -> None:
    """Of all [reader, token, d] tensors only what the readers see is kept: no normed, squared or float32 copy."""
    layers = 3
    subject = model_of(name, layers)
    graph, width = subject.graph, subject.model.config.hidden_size
    attention = graph.readers_per_layer - (0 if graph.parallel else 1)
    whole = attention * tiny_batch().clean.numel() * width
    _, saved = step(subject, 2)
    assert sum(size >= whole for size in saved) == layers, sorted(saved)[-8:]


@pytest.mark.parametrize("name", MLP)
def test_reads_made_anew_are_not_saved(name: str) -> None:
    """They cost a product for each block but the first of its panel, and one for each panel but the last."""
    subject = model_of(name, 3)
    graph = subject.graph
    attention = graph.readers_per_layer - (0 if graph.parallel else 1)
    plain, _ = step(subject, 2)
    again, saved = step(subject, 2, "reads")
    assert max(saved) < attention * tiny_batch().clean.numel() * subject.model.config.hidden_size
    assert again.products == plain.products + 1 + 1


def test_recomputing_saves_less_and_multiplies_more() -> None:
    subject = model_of("llama", 4)
    plain, kept = step(subject, 2)
    again, kept_again = step(subject, 2, recompute=True)
    assert sum(kept_again) < sum(kept)
    assert plain.products < again.products < 1.6 * plain.products


def test_logits_only_where_they_are_asked_for() -> None:
    subject = model_of("llama", 2)
    _, saved = step(subject, 2)
    assert max(size for size in saved if size % VOCAB == 0) <= 3 * 7 * subject.model.config.hidden_size * 11
    with Counting() as counting:
        subject.unembed(torch.zeros(6, subject.model.config.hidden_size, dtype=torch.float64))
    assert counting.products == 1


@pytest.mark.parametrize("name", MLP)
def test_every_norm_is_recognised(name: str) -> None:
    for block in MaskedModel(model_of(name, 2)).blocks:
        assert block._affine is not None


def test_a_norm_is_known_by_what_it_does() -> None:
    class OneMore(torch.nn.Module):
        eps = 1e-6

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)

    found = recognise(OneMore())
    assert found is not None and found.one_more
    assert recognise(torch.nn.LayerNorm(8)) is not None
    assert recognise(torch.nn.Identity()) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_is_known_in_every_precision(dtype: torch.dtype) -> None:
    """In float16 none was: relevance patching had no rule for a LayerNorm, and nothing was fused."""
    norm, rms = torch.nn.LayerNorm(48, dtype=dtype), torch.nn.RMSNorm(48, eps=1e-5, dtype=dtype)
    for module in (norm, rms):
        torch.nn.init.normal_(module.weight, 1, 0.3)
        found = recognise(module)
        assert found is not None and found.centred == (module is norm) and not found.one_more


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_normed_projection_is_norm_then_product(centred: bool, bias: bool) -> None:
    torch.manual_seed(0)
    module = (torch.nn.LayerNorm if centred else torch.nn.RMSNorm)(10, eps=1e-3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    norm = recognise(module.requires_grad_(False))
    assert norm is not None and norm.centred == centred
    weights = [torch.randn(n, 10, 4, dtype=torch.float64) for n in (3, 2)]
    biases = [torch.randn(n, 4, dtype=torch.float64) if bias and n == 3 else None for n in (3, 2)]
    x = (torch.randn(5, 6, 10, dtype=torch.float64) + 1).requires_grad_()
    project = Projection(norm, weights, biases)
    found = project(x)
    parts = zip(module(x).split([3, 2]), weights, biases, strict=True)
    expected = torch.cat([p @ w + (0 if b is None else b[:, None]) for p, w, b in parts])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    grads = [torch.autograd.grad((y * direction).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradcheck(project, x)
