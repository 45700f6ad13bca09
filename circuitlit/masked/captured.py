"""A loss and its mask gradient, or a stock forward, as one CUDA graph: hundreds of small launches become one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

Loss = Callable[..., Float[Tensor, ""]]
Outputs = tuple[Tensor, ...]
WARM_UPS = 3


class CapturedCall:
    """Calls `function(*inputs)`; on a GPU it replays a graph captured for these shapes, elsewhere it just calls.

    `function` must not synchronise with the host, takes and returns tensors alone, and must need the same memory each
    time. All shapes share the memory of the largest: what a replay computes is copied out before the next one. Where
    that leaves too little to capture a further shape, those captured before are let go of, and are captured again when
    they come: slow, but it runs; one length for all batches (`data.pad_to=max`) avoids it.

    Args:
        function: what to call.
        shapes: how many different shapes are captured before further ones run without a graph.
    """

    def __init__(self, function: Callable[..., Outputs], shapes: int = 8) -> None:
        self.function = function
        self.shapes = shapes
        self._graphs: dict[tuple, _Graph] = {}
        self._pool: Any = None
        self._largest = 0

    def __call__(self, *inputs: Tensor) -> Outputs:
        """The function's value, in tensors that no later call changes."""
        key = tuple((tuple(t.shape), t.dtype) for t in inputs)
        if key not in self._graphs:
            if len(self._graphs) >= self.shapes or not inputs[0].is_cuda:
                return self.function(*inputs)
            self._make_room(sum(t.numel() for t in inputs))
            graph = self._captured(inputs)
            if graph is None:
                self._largest = 0
                self._make_room(sum(t.numel() for t in inputs))
                graph = _Graph(self.function, inputs, self._pool)
            self._graphs[key] = graph
        return self._graphs[key].replay(inputs)

    def _captured(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """A graph, or None where its first runs, which need memory of their own, find none beside the other graphs'."""
        try:
            return _Graph(self.function, inputs, self._pool)
        except torch.OutOfMemoryError:
            if not self._graphs:
                raise
            return None

    def _make_room(self, size: int) -> None:
        """Let go of smaller graphs, which are captured again in the memory of a larger one; they cannot grow."""
        if size > self._largest:
            torch.cuda.synchronize()  # none of them is still running
            self._graphs.clear()
            gc.collect()  # a Trainer and its learner hold each other, and the learner its graphs' memory, until then
            self._pool, self._largest = torch.cuda.graph_pool_handle(), size


class CapturedLoss:
    """Calls `loss(masks, *inputs)`; on a GPU value and gradient come from a graph captured for these shapes.

    The value is differentiable in `masks`. `loss` must not synchronise with the host and its inputs must be tensors.

    Args:
        loss: the function.
        shapes: how many different shapes are captured before further ones run without a graph.
    """

    def __init__(self, loss: Loss, shapes: int = 8) -> None:
        self.loss = loss
        self._call = CapturedCall(partial(_value_and_grad, loss), shapes)

    def __call__(self, masks: Float[Tensor, "mask"], *inputs: Tensor) -> Float[Tensor, ""]:
        """The loss of these masks and inputs."""
        if not (masks.is_cuda and torch.is_grad_enabled()):
            return self.loss(masks, *inputs)
        return _Replay.apply(masks, self._call, *inputs)  # type: ignore[return-value]


def _value_and_grad(loss: Loss, masks: Tensor, *inputs: Tensor) -> Outputs:
    with torch.enable_grad():
        masks = masks.detach().requires_grad_()
        value = loss(masks, *inputs)
        (grad,) = torch.autograd.grad(value, masks)
    return value.detach(), grad


class _Graph:
    def __init__(self, function: Callable[..., Outputs], inputs: tuple[Tensor, ...], pool: Any) -> None:
        self.inputs = [t.detach().clone() for t in inputs]
        filled = [place for place, value in enumerate(inputs) if value.numel()]
        kinds = {(inputs[place].dtype, inputs[place].device) for place in filled}
        self.alike = [[p for p in filled if (inputs[p].dtype, inputs[p].device) == kind] for kind in kinds]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own, as much again
        self.graph = torch.cuda.CUDAGraph()
        with _own_workspaces(), torch.cuda.graph(self.graph, pool=pool):
            self.outputs = function(*self.inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> Outputs:
        for places in self.alike:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [self.inputs[place] for place in places], [inputs[place].detach() for place in places]
            )
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let a capture take cuBLAS workspaces from its own graph's memory.

    PyTorch keeps them by stream, and all graphs are captured on one. From version 2.12 on the end of a graph frees
    the workspace that the others still write to (pytorch issue 193402).
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


class _Replay(Function):
    @staticmethod
    def forward(ctx: Any, masks: Tensor, call: CapturedCall, *inputs: Tensor) -> Tensor:
        value, grad = call(masks.detach(), *inputs)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return (grads[0] * grad, None, *[None] * (len(ctx.needs_input_grad) - 2))
