"""The architectures: all that the project knows of each. A new one is one more row of `ANATOMIES`.

A row is an `Anatomy`, or a function that makes one of a configuration, where models of a family differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.bases import (
    BEHIND,
    BLOOM,
    EXPERTS,
    FUSED,
    GEMMA2,
    GEMMA3,
    GLM,
    GPT2,
    GPTJ,
    HUNYUAN,
    LLAMA,
    MPT,
    NEOX,
    OLMO2,
    OPT,
    OWN,
    PLAIN,
    TRACR,
    XGLM,
)
from circuitlit.model.layouts import by_group, in_quarters, in_turn, place_opt, rotation, separate
from circuitlit.model.refused import refusal


def _neox(config: PretrainedConfig) -> Anatomy:
    return replace(NEOX, parallel=config.use_parallel_residual)


def _opt(config: PretrainedConfig) -> Anatomy:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        raise UserError(
            "this OPT model norms behind its blocks, not ahead of them (as opt-350m does), so its residual stream is "
            "no sum of writers; take another size"
        )
    if config.word_embed_proj_dim != config.hidden_size:
        raise UserError("this OPT model projects its embeddings to another width; take another size")
    return OPT


def _olmo(config: PretrainedConfig) -> Anatomy:
    return LLAMA if config.clip_qkv is None else OWN


def _bigcode(config: PretrainedConfig) -> Anatomy:
    row = replace(GPT2, kv_heads=1 if config.multi_query else None)
    return row if config.multi_query else replace(row, split=by_group)


def _stablelm(config: PretrainedConfig) -> Anatomy:
    row = OWN if config.qk_layernorm else replace(LLAMA, rotate=rotation("gpt_neox"))
    return replace(row, parallel=True, mlp_norm="input_layernorm") if config.use_parallel_residual else row


def _cohere(config: PretrainedConfig) -> Anatomy:
    if getattr(config, "use_qk_norm", False):  # with a weight for each head
        return replace(OWN, parallel=True, mlp_norm="input_layernorm")
    unrotated = [n for n, kind in enumerate(layer_kinds(config)) if kind != "sliding_attention"]
    return replace(
        LLAMA,
        parallel=True,
        mlp_norm="input_layernorm",
        rotate=rotation("cohere"),
        unrotated=frozenset(unrotated if config.model_type == "cohere2" else ()),
    )


def _smollm3(config: PretrainedConfig) -> Anatomy:
    return replace(LLAMA, unrotated=frozenset(n for n, turns in enumerate(config.no_rope_layers) if not turns))


def _exaone_moe(config: PretrainedConfig) -> Anatomy:
    whole = [n for n, kind in enumerate(layer_kinds(config)) if kind != "sliding_attention"]
    return replace(LLAMA, unrotated=frozenset(whole if config.sliding_window else ()))


def _granite(config: PretrainedConfig) -> Anatomy:
    factors = {"embed_factor": config.embedding_multiplier, "write_factor": config.residual_multiplier}
    experts = config.model_type in ("granitemoe", "granitemoe_swa")
    return replace(LLAMA, **factors, mlp="block_sparse_moe" if experts else "mlp", routers=experts)


def _qwen_moe(config: PretrainedConfig) -> Anatomy:
    return replace(LLAMA, routers=config.decoder_sparse_step == 1 and not config.mlp_only_layers)


def _hyperclovax(config: PretrainedConfig) -> Anatomy:
    row = _granite(config)
    behind = {"mlp": "post_norm2", "mlp_chain": ("mlp", "post_norm2"), "post_norm": "post_norm1"}
    return replace(row, **behind) if config.use_post_norm else row


def _falcon(config: PretrainedConfig) -> Anatomy:
    new, parallel = config.new_decoder_architecture, config.new_decoder_architecture or config.parallel_attn
    two = new and config.num_ln_in_parallel_attn in (None, 2)
    ahead = "input_layernorm" if parallel else "post_attention_layernorm"
    return replace(
        NEOX,
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attn_norm="ln_attn" if two else "input_layernorm",
        mlp_norm="ln_mlp" if two else ahead,
        attention="self_attention",
        mlp_overwritten=True,
        parallel=parallel,
        kv_heads=config.num_kv_heads if new or not config.multi_query else 1,
        scale=(config.hidden_size // config.num_attention_heads) ** -0.5,
        rotary="transformer.rotary_emb",
        rotate=rotation("llama"),
        borrowed=config.alibi,
    )


def _bloom(config: PretrainedConfig) -> Anatomy:
    if config.apply_residual_connection_post_layernorm or (config.pretraining_tp > 1 and config.slow_but_exact):
        raise UserError("this BLOOM model adds normed streams, or goes around its output projections; take another")
    return BLOOM


def _exaone4(config: PretrainedConfig) -> Anatomy:
    whole = [n for n, kind in enumerate(layer_kinds(config)) if kind != "sliding_attention"]
    return replace(LLAMA, **BEHIND, unrotated=frozenset(whole if config.sliding_window else ()))


def _granite_swa(config: PretrainedConfig) -> Anatomy:
    if getattr(config, "shared_intermediate_size", 0):
        raise UserError("this Granite model has an MLP beside its experts, so its MLP is no one module; take another")
    mlp = "mlp" if config.model_type == "granite_swa" else "block_sparse_moe"
    return replace(_granite(config), mlp=mlp, borrowed=True, rotary=None, rotate=None)


Row = Anatomy | Callable[[Any], Anatomy]
ANATOMIES: dict[str, Row] = {
    "apertus": replace(PLAIN, attn_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
    "arcee": PLAIN,
    "biogpt": replace(
        XGLM,
        layers="biogpt.layers",
        positions="biogpt.embed_positions",
        place=place_opt,
        final_norm="biogpt.layer_norm",
    ),
    "bitnet": replace(OWN, joint=True),
    "bloom": _bloom,
    "codegen": replace(GPTJ, projections=("qkv_proj",), split=in_quarters),
    "cohere": _cohere,
    "cohere2": _cohere,
    "cwm": LLAMA,
    "dots1": LLAMA,
    "ernie4_5": replace(LLAMA, rotate=rotation("ernie4_5")),
    "ernie4_5_moe": replace(LLAMA, rotate=rotation("ernie4_5_moe")),
    "exaone4": _exaone4,
    "exaone_moe": _exaone_moe,
    "falcon": _falcon,
    "flex_olmo": OLMO2,
    "flint": OWN,
    "gemma": replace(LLAMA, rotate=rotation("gemma2")),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "glm": GLM,
    "glm4": replace(
        GLM,
        mlp="post_mlp_layernorm",
        mlp_chain=("mlp", "post_mlp_layernorm"),
        post_norm="post_self_attn_layernorm",
    ),
    "glm4_moe": replace(LLAMA, rotate=rotation("glm4_moe")),
    "gpt2": GPT2,
    "gpt_bigcode": _bigcode,
    "gpt_neo": replace(
        GPT2,
        attention="attn.attention",
        projections=("q_proj", "k_proj", "v_proj"),
        split=separate,
        out="out_proj",
        scale=1.0,
    ),
    "gpt_neox": _neox,
    "gpt_oss": replace(OWN, mlp_first=True, routers=True),
    "gptj": GPTJ,
    "granite": _granite,
    "granite_swa": _granite_swa,
    "granitemoe": _granite,
    "granitemoe_swa": _granite_swa,
    "helium": replace(LLAMA, rotate=rotation("helium")),
    "hunyuan_v1_dense": HUNYUAN,
    "hunyuan_v1_moe": HUNYUAN,
    "hy_v3": LLAMA,
    "hyperclovax": _hyperclovax,
    "internlm3": LLAMA,
    "iquestcoder": LLAMA,
    "jais2": PLAIN,
    "llama": LLAMA,
    "mellum": replace(LLAMA, rotary_by_layer=True),
    "minimax_m2": replace(OWN, joint=True),
    "ministral": LLAMA,
    "ministral3": LLAMA,
    "mistral": LLAMA,
    "mixtral": EXPERTS,
    "mpt": MPT,
    "nemotron": replace(PLAIN, rotate=rotation("gpt_neox")),
    "olmo": _olmo,
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "olmoe": replace(OWN, joint=True, routers=True),
    "opt": _opt,
    "persimmon": replace(
        NEOX,
        layers="model.layers",
        final_norm="model.final_layernorm",
        attention="self_attn",
        head_norms=("q_layernorm", "k_layernorm"),
        rotary="model.rotary_emb",
    ),
    "phi": replace(
        LLAMA,
        final_norm="model.final_layernorm",
        mlp_norm="input_layernorm",
        out="dense",
        activation="activation_fn",
        gated=None,
        parallel=True,
        head_norms=("q_layernorm", "k_layernorm"),
        rotate=rotation("gpt_neox"),
    ),
    "phi3": replace(FUSED, projections=("qkv_proj",), split=in_turn, rotate=rotation("phi3")),
    "phimoe": EXPERTS,
    "qwen2": LLAMA,
    "qwen2_moe": _qwen_moe,
    "qwen3": LLAMA,
    "qwen3_moe": _qwen_moe,
    "seed_oss": LLAMA,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": replace(PLAIN, activation="act"),
    "tracr": TRACR,
    "vaultgemma": replace(
        LLAMA, mlp_norm="pre_feedforward_layernorm", softcap="attn_logit_softcapping", rotate=rotation("gemma2")
    ),
    "xglm": XGLM,
}
GUESSED: set[str] = set()  # model types whose row here is a guess of this process


def forget_guess(kind: str) -> None:
    """Take a guessed row out again."""
    if kind in GUESSED:
        GUESSED.remove(kind)
        del ANATOMIES[kind]


def anatomy_of(config: PretrainedConfig) -> Anatomy:
    """The anatomy of a configuration's architecture.

    Raises:
        UserError: the architecture is not in the table, or uses a feature that the masked forward lacks.
    """
    row = ANATOMIES.get(config.model_type)
    if row is None:
        raise UserError(refusal(config.model_type))
    if getattr(config, "add_cross_attention", False):
        raise UserError("cross-attention has no edges in this graph; load a decoder-only model")
    if getattr(config, "use_bidirectional_attention", False):
        raise UserError("this model's attention is not causal; load one that is")
    return row if isinstance(row, Anatomy) else row(config)


def final_softcap(config: PretrainedConfig) -> float | None:
    """Bound on the logits (Gemma 2), None without."""
    return getattr(config, "final_logit_softcapping", None)


def logit_factor(config: PretrainedConfig) -> float:
    """Factor on the logits ahead of their bound; 1 without."""
    if config.model_type in ("cohere", "cohere2"):
        return config.logit_scale
    if config.model_type in ("granite", "granitemoe", "granite_swa", "granitemoe_swa"):
        return 1 / config.logits_scaling
    return config.logits_scaling if config.model_type == "hyperclovax" else 1.0


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """The kind of each layer, where a configuration tells them apart."""
    return list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)


def attention_window(config: PretrainedConfig) -> int | None:
    """Longest prompt for which attention is plainly causal; None without windows, and for borrowed attention."""
    if config.model_type in ANATOMIES and anatomy_of(config).borrowed:
        return None
    if config.model_type == "gpt_neo":
        return config.window_size if "local" in config.attention_layers else None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def comes_in_pieces(config: PretrainedConfig) -> bool:
    """Whether files hold a model's own parameters, of which a masked block's weights are views.

    Not so where attention is borrowed or has a norm or factor behind it, where query heads lie apart in one matrix
    (Falcon's groups), and where the library joins experts while it loads them.
    """
    anatomy, graph = anatomy_of(config), graph_of(config)
    apart = anatomy.split is by_group and graph.n_kv_heads < graph.n_heads
    return not (anatomy.borrowed or anatomy.folds or apart or get_checkpoint_conversion_mapping(config.model_type))


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
        n_kv_heads=anatomy.kv_heads or getattr(config, "num_key_value_heads", None) or heads,
        parallel=anatomy.parallel,
        coupled=anatomy.post_norm is not None or anatomy.joint,
        inputs=1 if anatomy.position_writer is None else 2,
        routers=anatomy.routers,
    )
