"""A masked block whose projections are read from the model in every forward, so that its adapters can be trained."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.ledger import Ledger, Token
from circuitlit.model.anatomy import Anatomy


class LiveBlock(MaskedBlock):
    """Like `MaskedBlock`, but gradients reach the LoRA factors of the block's linear modules.

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
        self._affine = None  # the fused projection has no gradient for weights

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
        return super().forward(*args, **more)

    def _write_heads(self, ledger: Ledger, token: Token, results: Float[Tensor, "head token width"]) -> Token:
        return ledger.write(token, self.first_writer, torch.bmm(results, self.out_weight))


def live_affine(module: nn.Module) -> tuple[Float[Tensor, "into out"], Float[Tensor, "out"] | None]:
    """Weight `[into, out]` and bias of a linear module, LoRA factors multiplied out with their gradient.

    Raises:
        UserError: another kind of adapter.
    """
    base: Any = getattr(module, "base_layer", module)
    if type(base) not in (nn.Linear, Conv1D):
        raise UserError(f"a projection is a {type(base).__name__}, not a linear layer; this model cannot be masked")
    weight = base.weight if type(base) is Conv1D else base.weight.t()
    for name in getattr(module, "active_adapters", ()):
        down = module.lora_A[name]  # type: ignore[index]
        if not isinstance(down, nn.Linear) or len(getattr(module, "lora_magnitude_vector", ())):
            raise UserError("only plain LoRA adapters can be trained with masks; take adapter=lora")
        weight = weight + module.scaling[name] * (module.lora_B[name].weight @ down.weight).t()  # type: ignore[index]
    return weight, base.bias
