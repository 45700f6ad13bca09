"""A masked block whose projections are read from the model in every forward, so that its adapters can be trained."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitlit.graph import Graph
from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.ledger import Ledger, Token
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.linear import refuse_curved, unit_map


class LiveBlock(MaskedBlock):
    """Like `MaskedBlock`, but gradients reach the adapters of the block's linear modules.

    The ablated run is a constant of the step: it is run with the adapters as they are, and no gradient goes through it.

    Args:
        anatomy: of the architecture.
        block: of the model.
        graph: the model's graph.
        layer: which block this is.
    """

    def __init__(self, anatomy: Anatomy, block: nn.Module, graph: Graph, layer: int) -> None:
        super().__init__(anatomy.parts(block, graph, live_affine), graph, layer)
        self._source = (anatomy, block, graph)  # a tuple: the block is not to be registered twice
        self._affine = self._mlp_affine = None  # what is fused has no gradient for weights

    def _own(self, name: str, value: Tensor | None) -> None:
        object.__setattr__(self, name, value)

    def forward(self, *args: Any, **more: Any) -> Any:
        """Read the weights, then do as the frozen block does."""
        anatomy, block, graph = self._source
        parts = anatomy.parts(block, graph, live_affine)
        for name, heads in (("q", parts.q), ("k", parts.k), ("v", parts.v)):
            self._own(f"{name}_weight", heads.weight)
            self._own(f"{name}_bias", heads.bias)
        self._own("out_weight", parts.out)
        self._own("out_bias", parts.out_bias)
        return super().forward(*args, **more)

    def _write_heads(self, ledger: Ledger, token: Token, results: Float[Tensor, "head token width"]) -> Token:
        return ledger.write(token, self.first_writer, torch.bmm(results, self.out_weight))


def live_affine(module: nn.Module) -> tuple[Float[Tensor, "into out"], Float[Tensor, "out"] | None]:
    """Weight `[into, out]` and bias of a linear module, with a gradient for its adapter's parameters.

    LoRA's factors are multiplied out; any other adapter, or LoRA in another state, is applied to unit vectors.

    Raises:
        UserError: it is no affine map.
    """
    if type(module) is nn.Linear:
        return module.weight.t(), module.bias
    if type(module) is Conv1D:
        return module.weight, module.bias
    if not _is_plain_lora(module):
        refuse_curved(module)
        return unit_map(module)
    layer: Any = module
    weight = layer.base_layer.weight if type(layer.base_layer) is Conv1D else layer.base_layer.weight.t()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            added = layer.scaling[name] * (layer.lora_B[name].weight @ layer.lora_A[name].weight).t()
            weight = weight + added.to(weight.dtype)  # factors are float32 beside a base of half precision
    return weight, layer.base_layer.bias


def _is_plain_lora(module: nn.Module) -> bool:
    """Whether a module is its base layer plus factors, without bias, variant or a flag that changes what it does."""
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) not in (nn.Linear, Conv1D):
        return False
    biased = any(getattr(factor, "bias", None) is not None for factor in module.lora_B.values())
    return not (module.merged or module.disable_adapters or module.lora_variant or biased)
