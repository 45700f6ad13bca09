"""The architectures: all that the project knows of each. A new one is one more row of `ANATOMIES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb as rotate_gemma
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as rotate_neox
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_llama

from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.model.anatomy import Anatomy, place_opt


def _separate(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = outputs
    heads, kv_heads = graph.n_heads, graph.n_kv_heads
    return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (kv_heads, -1)), v.unflatten(-1, (kv_heads, -1))


def _stacked(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-2: one matrix, all queries first."""
    q, k, v = outputs[0].unflatten(-1, (3, graph.n_heads, -1)).unbind(-3)
    return q, k, v


def _interleaved(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-NeoX: one matrix, each head's query, key and value together."""
    q, k, v = outputs[0].unflatten(-1, (graph.n_heads, 3, -1)).unbind(-2)
    return q, k, v


_LLAMA = Anatomy(
    layers="model.layers",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    split=_separate,
    out="o_proj",
    activation="act_fn",
    gated="up_proj",
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
    projections=("c_attn",),
    split=_stacked,
    out="c_proj",
    activation="act",
)
_NEOX = Anatomy(
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="attention",
    projections=("query_key_value",),
    split=_interleaved,
    out="dense",
    activation="act",
    rotary="gpt_neox.rotary_emb",
    rotate=rotate_neox,
)
_OPT = Anatomy(
    layers="model.decoder.layers",
    positions="model.decoder.embed_positions",
    place=place_opt,
    final_norm="model.decoder.final_layer_norm",
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    split=_separate,
    out="out_proj",
    activation="activation_fn",
    mlp="fc2",
    mlp_chain=("fc1", "activation_fn", "fc2"),
)
_GEMMA3 = replace(
    _LLAMA,
    mlp_norm="pre_feedforward_layernorm",
    mlp="post_feedforward_layernorm",
    mlp_chain=("mlp", "post_feedforward_layernorm"),
    post_norm="post_attention_layernorm",
    rotate=rotate_gemma,
    rotary_by_layer=True,
)
_GEMMA2 = replace(_GEMMA3, softcap="attn_logit_softcapping", rotary_by_layer=False)
_TRACR = Anatomy(
    layers="transformer.blocks",
    final_norm="transformer.norm",
    attn_norm="attn_norm",
    mlp_norm="mlp_norm",
    attention="attention",
    projections=("q_proj", "k_proj", "v_proj"),
    split=_separate,
    out="o_proj",
    activation="mlp.1",
    position_writer="transformer.positions",
    causal=False,
)
ANATOMIES = {
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "opt": _OPT,
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
            f"architecture '{config.model_type}' has no entry in circuitlit/model/families.py, which must say where "
            f"its blocks read and write the residual stream; supported: {', '.join(sorted(ANATOMIES))}"
        )
    if getattr(config, "add_cross_attention", False):
        raise UserError("cross-attention has no edges in this graph; load a decoder-only model")
    _refuse_variants(config, anatomy)
    return anatomy


def _refuse_variants(config: PretrainedConfig, anatomy: Anatomy) -> None:
    """Refuse what single models of a known architecture do otherwise."""
    if config.model_type == "opt":
        if not config.do_layer_norm_before or config._remove_final_layer_norm:
            raise UserError(
                "this OPT model norms behind its blocks, not ahead of them (as opt-350m does), so its residual stream "
                "is no sum of writers; take another size"
            )
        if config.word_embed_proj_dim != config.hidden_size:
            raise UserError("this OPT model projects its embeddings to another width; take another size")
    if anatomy.post_norm is not None:
        if config.attention_bias:
            raise UserError("a bias ahead of the norm behind the attention belongs to no head; this model has one")
        if getattr(config, "use_bidirectional_attention", False):
            raise UserError("this model's attention is not causal; load one that is")


def final_softcap(config: PretrainedConfig) -> float | None:
    """Bound on the logits (Gemma 2), None without."""
    return getattr(config, "final_logit_softcapping", None)


def logit_factor(config: PretrainedConfig) -> float:
    """Factor on the logits ahead of their bound; 1 without."""
    if config.model_type in ("cohere", "cohere2"):
        return config.logit_scale
    if config.model_type in ("granite", "granitemoe"):
        return 1 / config.logits_scaling
    return config.logits_scaling if config.model_type == "hyperclovax" else 1.0


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """The kind of each layer, where a configuration tells them apart."""
    return list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)


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
        coupled=anatomy.post_norm is not None,
        inputs=1 if anatomy.position_writer is None else 2,
    )
