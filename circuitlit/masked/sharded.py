"""A frozen model whose weights are shared out over the processes and gathered block by block (ZeRO-3).

DeepSpeed gathers a parameter within the forward of a module that owns it, and again in its backward. The stock modules
own theirs; an edge-masked block reads its attention's weights in another shape, so it owns the same parameters once
more and takes its views of them anew in each forward. The masks are no part of this: every process has them all.

Use it with `MaskedModel(recompute=True)`: what a block stores for its backward holds on to the gathered weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.forward import MaskedModel

WEIGHTS = tuple(f"{name}_{kind}" for name in ("q", "k", "v", "out") for kind in ("weight", "bias"))


class ShardedBlock(nn.Module):
    """An edge-masked block that takes its attention's weights from the stock block while they are gathered.

    Args:
        model: whose block it is.
        layer: which.
    """

    def __init__(self, model: MaskedModel, layer: int) -> None:
        super().__init__()
        anatomy, graph = model.subject.anatomy, model.graph
        stock, masked = anatomy.blocks(model.subject.model)[layer], model.blocks[layer]
        assert isinstance(masked, MaskedBlock)
        for name in WEIGHTS:
            delattr(masked, name)
        owned = [*getattr(stock, anatomy.attention).parameters(), *masked.attn_norm.parameters()]
        for number, parameter in enumerate(owned):  # directly: only a module's own parameters are gathered for it
            self.register_parameter(f"owned_{number}", parameter)
        self._masked = [masked]  # in a list, so not registered: its MLP and norms belong to the stock model
        self._parts = lambda: anatomy.parts(stock, graph)

    @property
    def head_width(self) -> int:
        """Width of one head's result."""
        return self._masked[0].head_width

    def forward(self, *args: Any) -> Any:
        """The block's forward, with views of the gathered weights; they go with the block's end."""
        masked, parts = self._masked[0], self._parts()
        for name, heads in (("q", parts.q), ("k", parts.k), ("v", parts.v)):
            setattr(masked, f"{name}_weight", heads.weight)
            setattr(masked, f"{name}_bias", heads.bias)
        masked.out_weight, masked.out_bias = parts.out, parts.out_bias
        try:
            return masked(*args)
        finally:
            for name in WEIGHTS:
                delattr(masked, name)


def shard(model: MaskedModel, offload: bool = False, persist: int = 100_000) -> None:
    """Share out a model's weights, in place; from now on every forward is one of all processes together.

    Args:
        model: the masked model; its subject is sharded with it, and moves to this process's device.
        offload: True keeps each process's share in the host's memory.
        persist: parameters up to this many elements stay whole.
    """
    import deepspeed  # slow to import, and needed for this alone

    on_gpu = torch.cuda.is_available()
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    stock = model.subject.model
    model.blocks = nn.ModuleList(ShardedBlock(model, layer) for layer in range(len(model.blocks)))
    zero: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": persist}
    if offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": stock.dtype == torch.bfloat16},
    }
    model.engine = [deepspeed.initialize(model=nn.ModuleList([stock, *model.blocks]), config=config)[0]]  # type: ignore[assignment]


def share(model: MaskedModel) -> float:
    """The share of the weights that this process holds while nothing is gathered."""
    sizes = [(p.ds_numel, max(p.numel(), p.ds_tensor.numel())) for p in model.subject.model.parameters()]  # type: ignore[attr-defined]
    return sum(held for _, held in sizes) / sum(whole for whole, _ in sizes)
