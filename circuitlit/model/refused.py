"""Which model types have no row in `families.py`, and why; other tables call a family what `model_type` calls it."""

from __future__ import annotations

_REASONS = {
    "it is an encoder, or a decoder that reads one": "bart bert bert-generation big_bird bigbird_pegasus blenderbot "
    "blenderbot-small blt camembert data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart "
    "prophetnet rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl "
    "xmod",
    "it mixes tokens by recurrence or convolution, in some layers at least, so these have no heads": "bailing_hybrid "
    "bamba falcon_h1 falcon_mamba granitemoehybrid inkling2_text inkling_text jamba kimi_linear lfm2 lfm2_moe lfm3 "
    "mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next "
    "qwen4_exp qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya",
    "its keys and values come of one latent vector for all heads (MLA), which is a reader of another kind": "axk1 axk2 "
    "deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots3_note dots3_note_text glm4_moe_lite glm_moe_dsa hy_v4 "
    "longcat_flash minicpm3 youtu",
    "its residual stream is scaled, mixed or normed between blocks, so it is no sum of writers": "doge gemma3n "
    "gemma3n_text gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant gemma4_unified_text "
    "openai-gpt",
    "its blocks run several times": "hrm_text",
    "its heads work in pairs": "diffllama",
    "it adds a bias beside the attention's output": "gpt_neox_japanese",
    "its attention has a gate, which is a reader of another kind": "afmoe beam laguna",
    "it reads images or sound, too; load the language model inside it, if that has a row": "emu3 fuyu gemma3 git "
    "got_ocr2 llama4 mllama moshi moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal",
    "its layers have unlike numbers of keys": "mimo_v2_flash",
    "it norms the embeddings, too, and its norms have no weights": "nanochat",
    "its attention is a mixture of experts": "jetmoe",
    "its MLP is two modules side by side": "granitemoeshared",
    "its checkpoints say gpt2, which has a row": "gpt-sw3",
    "nobody has read yet where its blocks read and write the residual stream": "aria_text cohere2_moe "
    "cohere_compass_text cpmant ctrl dbrx kolibri1 llama4_text minimax_m3_vl_text modernbert-decoder reformer "
    "solar_open xlnet",
}
REFUSED = {model_type: reason for reason, types in _REASONS.items() for model_type in types.split()}
UNREAD = list(_REASONS)[-1]


def refusal(model_type: str) -> str:
    """The sentence with which a model type without a row is refused."""
    reason = REFUSED.get(model_type, UNREAD)
    return (
        f"architecture '{model_type}' cannot be masked: {reason}; the page circuitlit/model/README.md lists the "
        "architectures that can"
    )
