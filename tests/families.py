"""Tiny configurations of families beyond those of `shared.py`: every kind of layer, every option, no factor of 1."""

from __future__ import annotations

from typing import Any

import torch
from conftest import VOCAB
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from circuitlit.evaluate.check.twin import KeepsFloat64 as KeepsFloat64

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_OWN_KEYS = {**_LLAMA, "num_key_value_heads": 4}
_WIDE = {**_OWN_KEYS, "hidden_size": 32, "head_dim": 8}
_PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
_WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 12}
_EXPERTS |= {"experts_implementation": "eager", "norm_topk_prob": True}
_GROUPS = {**_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_GROUPS |= {"first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse"], "routed_scaling_factor": 1.7}
_TURNS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    "full_attention": {"rope_type": "default", "rope_theta": 1e5},
}
_FACTORS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 2.5}
_OLD = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
_FALCON = {**_OLD, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bias": True, "alibi": False}
_FALCON |= {"ffn_hidden_size": 40, "max_position_embeddings": 64, "n_embd": None}
_NARROW = _WINDOWS | {"sliding_window": 4}  # below the prompts' length: borrowed attention has windows
_XGLM = {"d_model": 24, "attention_heads": 4, "ffn_dim": 40, "num_layers": 2, "vocab_size": VOCAB}

# name: its type is the part ahead of a colon, what follows tells variants apart
FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": _LLAMA | {"attention_bias": True},
    "arcee": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "biogpt": _OWN_KEYS,
    "bitnet": _LLAMA,
    "bloom": {"vocab_size": VOCAB, "hidden_size": 24, "n_layer": 2, "n_head": 4},
    "codegen": _OLD | {"rotary_dim": 4, "n_ctx": 64},
    "cohere:norms of heads": _LLAMA | {"logit_scale": 0.25, "use_qk_norm": True},
    "cohere": _LLAMA | {"logit_scale": 0.25, "attention_bias": True},
    "cohere2": _LLAMA | _WINDOWS | {"logit_scale": 0.25, "attention_bias": True},
    "cwm": _LLAMA | _WINDOWS,
    "dots1": _LLAMA | _WINDOWS | _GROUPS,
    "ernie4_5": _LLAMA | {"use_bias": True},
    "ernie4_5_moe": _LLAMA
    | _EXPERTS
    | {"use_bias": True, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone4": _LLAMA | _WINDOWS,
    "exaone_moe": _LLAMA | _WINDOWS | _GROUPS,
    "falcon:alibi": _FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True},
    "falcon:one key": _FALCON | {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
    "falcon:own keys": _FALCON | {"multi_query": False, "parallel_attn": False, "new_decoder_architecture": False},
    "falcon:groups": _FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon:one norm": _FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    "flex_olmo": _LLAMA | _EXPERTS,
    "flint": _LLAMA | _NARROW | _EXPERTS | {"mlp_only_layers": [1]},
    "gemma": _LLAMA | {"attention_bias": True},
    "glm": _LLAMA | _PARTIAL | {"attention_bias": True, "hidden_size": 32, "head_dim": 8},
    "glm4": _LLAMA | _PARTIAL | {"attention_bias": True, "hidden_size": 32, "head_dim": 8},
    "glm4_moe": _WIDE | _PARTIAL | _GROUPS | {"use_qk_norm": True, "attention_bias": True},
    "gpt_bigcode:one key": _OLD | {"multi_query": True},
    "gpt_bigcode:own keys": _OLD | {"multi_query": False},
    "gpt_neo": {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "window_size": 16,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_oss": _LLAMA | _NARROW | _EXPERTS,
    "gptj": _OLD | {"rotary_dim": 4},
    "granite_swa": _LLAMA | _NARROW | _FACTORS | {"attention_bias": True},
    "granitemoe_swa": _LLAMA | _NARROW | _FACTORS | _EXPERTS | {"shared_intermediate_size": 0},
    "granite": _LLAMA | _FACTORS | {"attention_bias": True, "mlp_bias": True},
    "granitemoe": _LLAMA | _FACTORS | _EXPERTS | {"attention_bias": True},
    "helium": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "hunyuan_v1_dense": _LLAMA | {"attention_bias": True},
    "hunyuan_v1_moe": _LLAMA | _EXPERTS | {"moe_topk": 2},
    "hy_v3": _LLAMA | _GROUPS,
    "hyperclovax": _LLAMA | _FACTORS | {"use_post_norm": False, "attention_bias": True},
    "hyperclovax:norms behind": _LLAMA | _FACTORS | {"use_post_norm": True},
    "internlm3": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "iquestcoder": _LLAMA,
    "jais2": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "mellum": _LLAMA | _WINDOWS | _GROUPS | {"rope_parameters": _TURNS},
    "minimax_m2": _LLAMA | _EXPERTS,
    "ministral": _LLAMA | _WINDOWS,
    "ministral3": _LLAMA
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        }
    },
    "mpt": {"vocab_size": VOCAB, "d_model": 24, "n_layers": 2, "n_heads": 4, "attn_config": {"clip_qkv": 2.0}},
    "mixtral": _LLAMA | _EXPERTS,
    "nemotron": _WIDE | _PARTIAL | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "olmo": _LLAMA | {"attention_bias": True},
    "olmo:clipped": _LLAMA | {"clip_qkv": 1.0},
    "olmo2": _LLAMA,
    "olmo3": _LLAMA | _NARROW,
    "olmoe": _LLAMA | _EXPERTS | {"clip_qkv": 2.0},
    "persimmon": _WIDE | _PARTIAL | {"qk_layernorm": True},
    "phi": _WIDE | _PARTIAL | {"num_key_value_heads": 2, "qk_layernorm": True},
    "phi3": _WIDE | _PARTIAL | {"num_key_value_heads": 2, "sliding_window": 16},
    "phimoe": _LLAMA | _EXPERTS | {"attention_bias": True, "lm_head_bias": True},
    "qwen2_moe": _LLAMA | _EXPERTS | {"shared_expert_intermediate_size": 20, "mlp_only_layers": [1]},
    "qwen2_moe:all experts": _LLAMA | _EXPERTS | {"shared_expert_intermediate_size": 20},
    "qwen3_moe": _LLAMA | _EXPERTS | {"mlp_only_layers": [1], "attention_bias": True},
    "qwen3_moe:all experts": _LLAMA | _EXPERTS | {"norm_topk_prob": True},
    "seed_oss": _LLAMA | {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "smollm3": _LLAMA | {"no_rope_layers": [1, 0], "attention_bias": True},
    "stablelm": _WIDE | _PARTIAL | {"use_qkv_bias": True, "num_key_value_heads": 2},
    "stablelm:norms of heads": _WIDE | _PARTIAL | {"qk_layernorm": True},
    "stablelm:parallel": _WIDE | _PARTIAL | {"use_qkv_bias": True, "use_parallel_residual": True},
    "starcoder2": _LLAMA,
    "vaultgemma": _LLAMA
    | _WINDOWS
    | {"query_pre_attn_scalar": 5, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    "xglm": _XGLM,
}


def tiny_family(name: str, seed: int = 0, **numbers: Any) -> PreTrainedModel:
    """A random model of a family in float64, every parameter perturbed; `numbers` replace some of its configuration."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name.partition(":")[0], **{**FAMILIES[name], **numbers})
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model
