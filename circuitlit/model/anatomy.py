"""Where each architecture reads and writes the residual stream: all architecture knowledge of the project.

A new architecture is one more row of `ANATOMIES`. Everything else sees `BlockParts`: weights per head in one canonical
shape, and the model's own norm and MLP modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as rotate_neox
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_llama
from transformers.pytorch_utils import Conv1D

from circuitlit.errors import UserError
from circuitlit.graph import Graph

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


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
        out: maps from each head's result to the residual stream, without bias.
        out_bias: bias of the attention output, which belongs to no head; None where the model has none.
        attn_norm, mlp_norm: the model's own norms before attention and MLP.
        q_norm, k_norm: norms of single heads' queries and keys (Qwen3), else None.
        mlp: the model's own MLP.
        scale: factor on query-key products.
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


@dataclass(frozen=True)
class Anatomy:
    """Attribute paths of one architecture, from the causal language model down.

    Attributes:
        layers, final_norm: paths from the model.
        attn_norm, mlp_norm, attention, mlp: paths from a block.
        qkv: splits an attention module into its q, k and v maps.
        out: name of the attention's output projection.
        positions: path of learned position embeddings, None with rotary ones.
        rotary, rotate: path of the module that makes cosines and sines, and the function that applies them.
        position_writer: path of position embeddings that are a writer of the graph (Tracr), not a constant.
        causal: False where a token attends to later ones too.
    """

    layers: str
    final_norm: str
    attn_norm: str
    mlp_norm: str
    attention: str
    qkv: Callable[[nn.Module, Graph], tuple[HeadMap, HeadMap, HeadMap]]
    out: str
    mlp: str = "mlp"
    positions: str | None = None
    rotary: str | None = None
    rotate: Rotate | None = None
    position_writer: str | None = None
    causal: bool = True

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks, first to last."""
        return list(attrgetter(self.layers)(model))

    def parts(self, block: nn.Module, graph: Graph) -> BlockParts:
        """One block in canonical shapes: views of the model's weights, adapters folded into a new tensor."""
        attention = getattr(block, self.attention)
        q, k, v = self.qkv(attention, graph)
        weight, bias = affine(getattr(attention, self.out))
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
            mlp=getattr(block, self.mlp),
            scale=float(attention.scaling),
        )


@torch.no_grad()
def affine(module: nn.Module) -> tuple[Float[Tensor, "into out"], Float[Tensor, "out"] | None]:
    """Weight `[into, out]` and bias of a linear module; of any adapter-wrapped one by what it does to unit vectors."""
    if type(module) is nn.Linear:
        return module.weight.t(), module.bias
    if type(module) is Conv1D:
        return module.weight, module.bias
    base = getattr(module, "base_layer", None)
    if base is None:
        raise UserError(f"a projection is a {type(module).__name__}, not a linear layer; this model cannot be masked")
    width = base.weight.shape[0] if type(base) is Conv1D else base.weight.shape[1]
    unit = torch.eye(width, dtype=base.weight.dtype, device=base.weight.device)
    bias = module(torch.zeros_like(unit[:1]))[0]
    return module(unit) - bias, bias


def _heads(weight: Tensor, bias: Tensor | None, n: int) -> HeadMap:
    split = None if bias is None else bias.unflatten(0, (n, -1))
    return HeadMap(weight.unflatten(1, (n, -1)).permute(1, 0, 2), split)


def _separate(attention: nn.Module, graph: Graph) -> tuple[HeadMap, HeadMap, HeadMap]:
    q, k, v = (affine(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj"))
    return _heads(*q, graph.n_heads), _heads(*k, graph.n_kv_heads), _heads(*v, graph.n_kv_heads)


def _stacked(attention: Any, graph: Graph) -> tuple[HeadMap, HeadMap, HeadMap]:
    """GPT-2: one matrix, all queries first."""
    weight, bias = affine(attention.c_attn)
    biases = [None] * 3 if bias is None else bias.chunk(3)
    q, k, v = (_heads(w, b, graph.n_heads) for w, b in zip(weight.chunk(3, 1), biases, strict=True))
    return q, k, v


def _interleaved(attention: Any, graph: Graph) -> tuple[HeadMap, HeadMap, HeadMap]:
    """GPT-NeoX: one matrix, each head's query, key and value together."""
    weight, bias = affine(attention.query_key_value)
    joint = _heads(weight, bias, graph.n_heads)
    biases = [None] * 3 if joint.bias is None else joint.bias.chunk(3, 1)
    q, k, v = (HeadMap(w, b) for w, b in zip(joint.weight.chunk(3, 2), biases, strict=True))
    return q, k, v


_LLAMA = Anatomy(
    layers="model.layers",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="self_attn",
    qkv=_separate,
    out="o_proj",
    rotary="model.rotary_emb",
    rotate=rotate_llama,
)
_GPT2 = Anatomy(
    layers="transformer.h",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    attention="attn",
    qkv=_stacked,
    out="c_proj",
)
_NEOX = Anatomy(
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="attention",
    qkv=_interleaved,
    out="dense",
    rotary="gpt_neox.rotary_emb",
    rotate=rotate_neox,
)
_TRACR = Anatomy(
    layers="transformer.blocks",
    final_norm="transformer.norm",
    attn_norm="attn_norm",
    mlp_norm="mlp_norm",
    attention="attention",
    qkv=_separate,
    out="o_proj",
    position_writer="transformer.positions",
    causal=False,
)
ANATOMIES = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "tracr": _TRACR,
}


def anatomy_of(config: PretrainedConfig) -> Anatomy:
    """The anatomy of a configuration's architecture.

    Raises:
        UserError: the architecture is not in the table, or uses a feature that the masked forward lacks.
    """
    anatomy = ANATOMIES.get(config.model_type)
    if anatomy is None:
        raise UserError(
            f"architecture '{config.model_type}' has no entry in circuitlit/model/anatomy.py, which must say where its "
            f"blocks read and write the residual stream; supported: {', '.join(sorted(ANATOMIES))}"
        )
    if getattr(config, "add_cross_attention", False):
        raise UserError("cross-attention has no edges in this graph; load a decoder-only model")
    return anatomy


def graph_of(config: PretrainedConfig) -> Graph:
    """The graph of a configuration; needs no weights.

    Raises:
        UserError: the architecture is not supported.
    """
    anatomy = anatomy_of(config)
    heads = config.num_attention_heads
    return Graph(
        n_layers=config.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        parallel=bool(getattr(config, "use_parallel_residual", False)),
        inputs=1 if anatomy.position_writer is None else 2,
    )


def window_of(config: PretrainedConfig) -> int | None:
    """Longest prompt for which attention is plainly causal; None without sliding windows."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper, adapters still in place, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]
