"""The few rows that `families.py` makes all others of."""

from __future__ import annotations

from dataclasses import replace

from circuitlit.model.anatomy import Anatomy
from circuitlit.model.layouts import by_group, in_turn, place_opt, place_xglm, rotation, separate

LLAMA = Anatomy(
    layers="model.layers",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    split=separate,
    out="o_proj",
    activation="act_fn",
    gated="up_proj",
    rotary="model.rotary_emb",
    rotate=rotation("llama"),
)
EXPERTS = replace(LLAMA, routers=True)
GPT2 = Anatomy(
    layers="transformer.h",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    attention="attn",
    projections=("c_attn",),
    split=in_turn,
    out="c_proj",
    activation="act",
)
NEOX = Anatomy(
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="attention",
    projections=("query_key_value",),
    split=by_group,
    out="dense",
    activation="act",
    rotary="gpt_neox.rotary_emb",
    rotate=rotation("gpt_neox"),
)
OPT = Anatomy(
    layers="model.decoder.layers",
    positions="model.decoder.embed_positions",
    place=place_opt,
    final_norm="model.decoder.final_layer_norm",
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    split=separate,
    out="out_proj",
    activation="activation_fn",
    mlp="fc2",
    mlp_chain=("fc1", "activation_fn", "fc2"),
)
GEMMA3 = replace(
    LLAMA,
    mlp_norm="pre_feedforward_layernorm",
    mlp="post_feedforward_layernorm",
    mlp_chain=("mlp", "post_feedforward_layernorm"),
    post_norm="post_attention_layernorm",
    post_gain=1.0,
    rotate=rotation("gemma2"),
    rotary_by_layer=True,
)
GEMMA2 = replace(GEMMA3, softcap="attn_logit_softcapping", rotary_by_layer=False)
TRACR = Anatomy(
    layers="transformer.blocks",
    final_norm="transformer.norm",
    attn_norm="attn_norm",
    mlp_norm="mlp_norm",
    attention="attention",
    projections=("q_proj", "k_proj", "v_proj"),
    split=separate,
    out="o_proj",
    activation="mlp.1",
    position_writer="transformer.positions",
    causal=False,
)
PLAIN = replace(LLAMA, gated=None)
FUSED = replace(LLAMA, activation="activation_fn", gated="gate_up_proj", gate_fused=True)
GLM = replace(FUSED, rotate=rotation("glm"))
HUNYUAN = replace(LLAMA, head_norms=("query_layernorm", "key_layernorm"), head_norms_last=True)
XGLM = replace(
    OPT,
    layers="model.layers",
    positions="model.embed_positions",
    place=place_xglm,
    final_norm="model.layer_norm",
)
OWN = replace(LLAMA, borrowed=True, rotary=None, rotate=None)
BEHIND = {
    "attn_norm": "",
    "mlp_norm": "",
    "post_norm": "post_attention_layernorm",
    "mlp": "post_feedforward_layernorm",
    "mlp_chain": ("mlp", "post_feedforward_layernorm"),
}
OLMO2 = replace(OWN, **BEHIND, joint=True)
GPTJ = replace(
    GPT2,
    positions=None,
    mlp_norm="ln_1",
    projections=("q_proj", "k_proj", "v_proj"),
    split=separate,
    out="out_proj",
    parallel=True,
    borrowed=True,
)
BLOOM = Anatomy(
    layers="transformer.h",
    embedded="transformer.word_embeddings_layernorm",
    final_norm="transformer.ln_f",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attention="self_attention",
    projections=("query_key_value",),
    split=by_group,
    out="dense",
    activation="gelu_impl",
    mlp="mlp.dense_4h_to_h",  # the module around it adds the stream, too
    mlp_chain=("mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"),
    borrowed=True,
)
MPT = replace(
    BLOOM,
    layers="transformer.blocks",
    embedded=None,
    final_norm="transformer.norm_f",
    attn_norm="norm_1",
    mlp_norm="norm_2",
    attention="attn",
    projections=("Wqkv",),
    split=in_turn,
    out="out_proj",
    activation="act",
    mlp="ffn.down_proj",
    mlp_chain=("ffn.up_proj", "ffn.act", "ffn.down_proj"),
)
