"""Where an architecture reads and writes the residual stream, and its blocks in parts.

`model/families.py` fills in an `Anatomy` for each architecture. Everything else sees `BlockParts`: weights per head in
one canonical shape, and the model's own norm and MLP modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuitlit.errors import UserError
from circuitlit.graph import Graph

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Split = Callable[[Sequence[Tensor], Graph], tuple[Tensor, Tensor, Tensor]]
Place = Callable[[nn.Module, Tensor], Tensor]
Read = Callable[[nn.Module], tuple[Tensor, Tensor | None]]
BENT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest output


@dataclass(frozen=True)
class HeadMap:
    """An affine map per head, `x[head] @ weight[head] + bias[head]`."""

    weight: Float[Tensor, "head into out"]
    bias: Float[Tensor, "head out"] | None


@dataclass(frozen=True)
class BlockParts:
    """One transformer block, taken apart.

    Attributes:
        q, k, v: maps from the normed residual stream to each head's vectors.
        out: maps from each head's result (scaled by `post_scale`) to the residual stream, without bias.
        out_bias: bias of the attention output, which belongs to no head; None where the model has none.
        attn_norm, mlp_norm: the model's own norms before attention and MLP.
        q_norm, k_norm: norms of single heads' queries and keys (Qwen3), else None.
        mlp: the model's own MLP, with the norm behind it where there is one.
        scale: factor on query-key products.
        post_scale: factor of a norm behind the attention, which all heads share; None without such a norm.
        softcap: bound on the scores of the attention, None without.
    """

    q: HeadMap
    k: HeadMap
    v: HeadMap
    out: Float[Tensor, "head into d"]
    out_bias: Float[Tensor, "d"] | None
    attn_norm: nn.Module
    mlp_norm: nn.Module
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    mlp: nn.Module
    scale: float
    post_scale: PostScale | None = None
    softcap: float | None = None


class PostScale(nn.Module):
    """The factor that an RMS norm behind the attention puts on every head's write: 1 over the RMS of the heads' sum.

    With it a head's own write is defined, `result @ out * (1 + weight) / RMS(sum of all heads)`, and the heads' writes
    add up to what the norm puts out.

    Args:
        out: the output projection, without bias.
        eps: the norm's.
    """

    def __init__(self, out: nn.Module, eps: float) -> None:
        super().__init__()
        self.out, self.eps = out, eps

    def forward(self, results: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows 1"]:
        """The factor at every token, from the heads' results side by side."""
        return self.of(self.out(results))

    def of(self, total: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """The factor, from the heads' sum."""
        wide = total if total.dtype == torch.float64 else total.float()
        return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps).to(total.dtype)


def _place(table: nn.Module, places: Tensor) -> Tensor:
    return table(places)


def place_opt(table: nn.Module, places: Tensor) -> Tensor:
    """OPT's position embeddings, whose module takes the places twice."""
    return table(places, position_ids=places)  # adds OPT's offset of 2 itself


@dataclass(frozen=True)
class Anatomy:
    """Attribute paths of one architecture, from the causal language model down.

    Attributes:
        layers, final_norm: paths from the model.
        attn_norm, mlp_norm, attention, mlp: paths from a block.
        projections: names of the attention's modules whose outputs hold queries, keys and values.
        split: takes these outputs (or weights, or biases) apart into q, k and v, `[*, head, width]` each.
        out: name of the attention's output projection.
        activation: name of the MLP's activation module.
        gated: name of the MLP's map that the activation is multiplied with, None without a gate.
        mlp: the module whose output is what the MLP writes.
        mlp_chain: the modules from the normed input to that output, one after another; empty for `mlp` alone.
        post_norm: RMS norm (of weight 1 + w) between the attention's output projection and the stream, or None.
        softcap: name of the attention's bound on its scores; None without.
        positions, place: path of learned position embeddings, None with rotary ones, and how they are looked up.
        rotary, rotate: path of the module that makes cosines and sines, and the function that applies them.
        rotary_by_layer: True where that module takes the kind of the layer.
        position_writer: path of position embeddings that are a writer of the graph (Tracr), not a constant.
        causal: False where a token attends to later ones too.
    """

    layers: str
    final_norm: str
    attn_norm: str
    mlp_norm: str
    attention: str
    projections: tuple[str, ...]
    split: Split
    out: str
    activation: str
    gated: str | None = None
    mlp: str = "mlp"
    mlp_chain: tuple[str, ...] = ()
    post_norm: str | None = None
    softcap: str | None = None
    positions: str | None = None
    place: Place = _place
    rotary: str | None = None
    rotate: Rotate | None = None
    rotary_by_layer: bool = False
    position_writer: str | None = None
    causal: bool = True

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks, first to last."""
        return list(attrgetter(self.layers)(model))

    def parts(self, block: nn.Module, graph: Graph, read: Read | None = None) -> BlockParts:
        """One block in canonical shapes: views of the model's weights, adapters folded into a new tensor.

        Args:
            block: of the model.
            graph: the model's.
            read: weight and bias of a linear module; None is `affine`.
        """
        attention, read = getattr(block, self.attention), read or affine
        maps = [read(getattr(attention, name)) for name in self.projections]
        q, k, v = self._heads([weight for weight, _ in maps], [bias for _, bias in maps], graph)
        weight, bias = read(getattr(attention, self.out))
        if self.post_norm is not None:
            weight = weight * (1 + getattr(block, self.post_norm).weight)
        chain = [getattr(block, name) for name in self.mlp_chain or (self.mlp,)]
        return BlockParts(
            q,
            k,
            v,
            out=weight.unflatten(0, (graph.n_heads, -1)),
            out_bias=bias,
            attn_norm=getattr(block, self.attn_norm),
            mlp_norm=getattr(block, self.mlp_norm),
            q_norm=getattr(attention, "q_norm", None),
            k_norm=getattr(attention, "k_norm", None),
            mlp=chain[0] if len(chain) == 1 else nn.Sequential(*chain),
            scale=float(attention.scaling),
            post_scale=self.post_scale(block),
            softcap=None if self.softcap is None else getattr(attention, self.softcap),
        )

    def _heads(self, weights: list[Tensor], biases: list[Tensor | None], graph: Graph) -> list[HeadMap]:
        per_head = [weight.movedim(-2, 0) for weight in self.split(weights, graph)]
        if all(bias is None for bias in biases):
            return [HeadMap(weight, None) for weight in per_head]
        full = [w.new_zeros(w.shape[-1]) if b is None else b for w, b in zip(weights, biases, strict=True)]
        return [HeadMap(weight, bias) for weight, bias in zip(per_head, self.split(full, graph), strict=True)]

    def post_scale(self, block: nn.Module) -> PostScale | None:
        """The factor of the norm behind a block's attention, if there is one."""
        if self.post_norm is None:
            return None
        out = getattr(getattr(block, self.attention), self.out)
        return PostScale(out, float(getattr(block, self.post_norm).eps))


@torch.no_grad()
def affine(module: nn.Module) -> tuple[Float[Tensor, "into out"], Float[Tensor, "out"] | None]:
    """Weight `[into, out]` and bias of a linear module; of any adapter-wrapped one by what it does to unit vectors.

    Raises:
        UserError: it is no affine map.
    """
    if type(module) is nn.Linear:
        return module.weight.t(), module.bias
    if type(module) is Conv1D:
        return module.weight, module.bias
    refuse_curved(module)
    return unit_map(module)


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
    while type(base) not in (nn.Linear, Conv1D):
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
