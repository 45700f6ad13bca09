"""Linear modules as what they are: a weight and a bias, whatever class or adapter they have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuitlit.errors import UserError

Read = Callable[[nn.Module], tuple[Tensor, Tensor | None]]
BENT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest output


@torch.no_grad()
def affine(module: nn.Module) -> tuple[Float[Tensor, "into out"], Float[Tensor, "out"] | None]:
    """Weight `[into, out]` and bias of a linear module; of any adapter-wrapped one by what it does to unit vectors.

    Raises:
        UserError: it is no affine map.
    """
    if type(module) is Conv1D:
        return module.weight, module.bias
    if isinstance(module, nn.Linear) and is_linear(module):
        return module.weight.t(), module.bias
    refuse_curved(module)
    weight, bias = unit_map(module)
    none = _base_layer(module).bias is None and not bool(bias.any())  # a layer without a bias has none with an adapter
    return weight, None if none else bias


@torch.no_grad()
def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: of a subclass, if it does the same to random rows (or its twin does)."""
    if type(module) in (nn.Linear, Conv1D) or not isinstance(module, nn.Linear):
        return type(module) in (nn.Linear, Conv1D)
    if module.weight.shape != (module.out_features, module.in_features) or not module.weight.is_floating_point():
        return False
    twin: Any = with_memory(module)
    rows = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(0), device="cpu").to(twin.weight)
    found, expected = twin.forward(rows), F.linear(rows, twin.weight, twin.bias)
    if not isinstance(found, Tensor):  # PhiMoE's router, say
        return False
    return bool((found - expected).abs().max() <= BENT[found.dtype] * expected.abs().max())


def with_memory(module: nn.Module) -> nn.Module:
    """A module that can be tried: itself, or a twin with random parameters where its own are on the meta device."""
    if not any(parameter.is_meta for parameter in module._parameters.values() if parameter is not None):
        return module
    twin, generator = copy.copy(module), torch.Generator().manual_seed(0)
    twin._parameters = {
        name: None
        if own is None
        else nn.Parameter(torch.randn(own.shape, generator=generator, device="cpu").to(own.dtype))
        for name, own in module._parameters.items()
    }
    return twin


def unit_map(module: nn.Module) -> tuple[Float[Tensor, "into out"], Float[Tensor, "out"]]:
    """Weight and bias of a module with an adapter, with a gradient for the adapter's parameters."""
    base = _base_layer(module)
    unit = torch.eye(_width(base), dtype=base.weight.dtype, device=base.weight.device)
    bias = module(torch.zeros_like(unit[:1]))[0]
    return module(unit) - bias, bias


@torch.no_grad()
def refuse_curved(module: nn.Module) -> None:
    """Refuse a projection that is no affine map, by two vectors and one on the line through them.

    Raises:
        UserError: it is none.
    """
    base = _base_layer(module)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, _width(base), generator=draw).to(base.weight.device, base.weight.dtype)
    along, found = 2 * module(x) - module(y), module(2 * x - y)
    if not float((along - found).abs().max()) <= BENT[found.dtype] * float(along.abs().max()):
        kind = type(module).__module__.removeprefix("peft.tuners.").split(".")[0]
        raise UserError(f"a projection's adapter ({kind}) is no affine map, so edges cannot be read off it; take LoRA")


def _base_layer(module: nn.Module) -> Any:
    """The linear layer inside an adapter."""
    base = module
    while not is_linear(base):
        base = getattr(base, "base_layer", None) or getattr(base, "original_module", None)
        if base is None:
            kind = type(module).__name__
            raise UserError(f"a projection is a {kind}, not a linear layer; this model cannot be masked")
    return base


def _width(base: nn.Linear | Conv1D) -> int:
    return base.weight.shape[0] if type(base) is Conv1D else base.weight.shape[1]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper, adapters still in place, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]
