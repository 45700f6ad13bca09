"""Matrix products with frozen weights on a CPU, by oneDNN where PyTorch takes MKL.

Both are in PyTorch's builds. On AMD's processors MKL stays with AVX2 even where there is AVX-512, and is less than half
as fast; with AVX2 alone oneDNN is a tenth faster. PyTorch's own operators take MKL for float32, so those of a frozen
model are sent elsewhere while `fast_products` is entered. Values differ by rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

PLAIN = (Tensor, nn.Parameter)
LEAST = 2**16  # multiplications below which a call costs more than it saves


@functools.cache
def _available() -> bool:
    """Whether oneDNN's product is there and right, by trial: it is an operator that PyTorch's compiler calls."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator, device="cpu") for size in ((5, 7), (7, 3), (3,)))
    try:
        found = _by_onednn(x, weight, bias), _by_onednn(x, weight.t().contiguous().t(), bias)
    except (AttributeError, RuntimeError):
        return False
    expected = x @ weight + bias
    return all(torch.allclose(one, expected, rtol=1e-5, atol=1e-5) for one in found)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    other = weight.t()
    if not (weight.is_contiguous() or other.is_contiguous()):
        other = other.contiguous()  # of any other order the library has a fifty times slower way
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), other, bias, "none", [], "")


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these: plain float32 matrices on a CPU, large enough to matter."""
    if x.dim() < 2:
        return False
    alike = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    plain = type(x) in PLAIN and type(weight) in PLAIN and weight.dim() == 2
    return alike and plain and x.numel() * weight.shape[-1] >= LEAST and _available()


@torch.no_grad()
def product(x: Float[Tensor, "rows into"], weight: Float[Tensor, "into out"]) -> Float[Tensor, "rows out"]:
    """`x @ weight`, without a gradient; the weight is in order by rows or by columns."""
    return _by_onednn(x, weight) if suits(x, weight) else x @ weight


@torch.no_grad()
def batched_product(
    x: Float[Tensor, "head rows into"], weight: Float[Tensor, "head into out"], out: Float[Tensor, "head rows out"]
) -> Float[Tensor, "head rows out"]:
    """`x @ weight` for each head, written to `out`, without a gradient.

    One call a head pays where oneDNN is far ahead, with AVX-512.
    """
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not suits(x[0], weight[0]):
        return torch.bmm(x, weight, out=out)
    for own, factors, room in zip(x, weight, out, strict=True):
        room.copy_(_by_onednn(own, factors))
    return out


def frozen_product(
    x: Float[Tensor, "*rows into"], weight: Float[Tensor, "into out"], bias: Float[Tensor, "out"] | None = None
) -> Float[Tensor, "*rows out"]:
    """`x @ weight + bias` with a gradient for x alone."""
    if not suits(x, weight):
        return x @ weight if bias is None else F.linear(x, weight.t(), bias)
    rows: Any = _FrozenProduct.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], weight.shape[1])  # out here: PEFT adds to it in place


class _FrozenProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return product(grads[0], weight.t()), None, None


def fast_products(like: Tensor) -> AbstractContextManager[Any]:
    """While it is entered, linear modules with frozen weights are multiplied by oneDNN, where it `suits`.

    Without effect, and without cost, where the tensor is on no CPU.
    """
    return _FastProducts() if like.device.type == "cpu" else nullcontext()


class _FastProducts(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Send the products of `nn.Linear`, and of the `Conv1D` of GPT-2, elsewhere."""
        kwargs = kwargs or {}
        if not kwargs and func is F.linear and _is_frozen(args[1:]) and suits(args[0], args[1].t()):
            bias = args[2] if len(args) > 2 else None
            return frozen_product(args[0], args[1].t(), bias)
        if not kwargs and func is torch.addmm and args[0].dim() == 1 and _is_frozen(args[::2]):
            return frozen_product(args[1], args[2], args[0])
        return func(*args, **kwargs)


def _is_frozen(parts: tuple[Tensor | None, ...]) -> bool:
    return not any(part is not None and part.requires_grad for part in parts)
