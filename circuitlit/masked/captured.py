"""A loss and its mask gradient as one CUDA graph: hundreds of small launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

Loss = Callable[..., Float[Tensor, ""]]
WARM_UPS = 3


class CapturedLoss:
    """Calls `loss(masks, *inputs)`; on a GPU it replays a graph captured for these shapes, elsewhere it just calls.

    The value is differentiable in `masks`. `loss` must not synchronise with the host and its inputs must be tensors.

    Args:
        loss: the function.
        shapes: how many different shapes are captured before further ones run without a graph.
    """

    def __init__(self, loss: Loss, shapes: int = 8) -> None:
        self.loss = loss
        self.shapes = shapes
        self._graphs: dict[tuple, _Graph] = {}

    def __call__(self, masks: Float[Tensor, "mask"], *inputs: Tensor) -> Float[Tensor, ""]:
        """The loss of these masks and inputs."""
        if not (masks.is_cuda and torch.is_grad_enabled()):
            return self.loss(masks, *inputs)
        key = tuple((tuple(t.shape), t.dtype) for t in (masks, *inputs))
        if key not in self._graphs:
            if len(self._graphs) >= self.shapes:
                return self.loss(masks, *inputs)
            self._graphs[key] = _Graph(self.loss, masks, inputs)
        return _Replay.apply(masks, self._graphs[key], *inputs)  # type: ignore[return-value]


class _Graph:
    def __init__(self, loss: Loss, masks: Tensor, inputs: tuple[Tensor, ...]) -> None:
        self.masks = masks.detach().clone().requires_grad_()
        self.inputs = [t.detach().clone() for t in inputs]
        filled = [place for place, value in enumerate(inputs) if value.numel()]
        kinds = {(inputs[place].dtype, inputs[place].device) for place in filled}
        self.alike = [[p for p in filled if (inputs[p].dtype, inputs[p].device) == kind] for kind in kinds]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                torch.autograd.grad(loss(self.masks, *self.inputs), self.masks)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own, as much again
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            value = loss(self.masks, *self.inputs)
            (self.grad,) = torch.autograd.grad(value, self.masks)
            self.value = value.detach()

    def replay(self, masks: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        self.masks.detach().copy_(masks)
        for places in self.alike:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [self.inputs[place] for place in places], [inputs[place] for place in places]
            )
        self.graph.replay()
        return self.value.clone(), self.grad.clone()


class _Replay(Function):
    @staticmethod
    def forward(ctx: Any, masks: Tensor, graph: _Graph, *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            value, grad = graph.replay(masks.detach(), inputs)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return (grads[0] * grad, None, *[None] * (len(ctx.needs_input_grad) - 2))
