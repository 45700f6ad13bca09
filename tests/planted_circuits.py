"""Small transformers with a circuit written by hand among heads and MLPs that distract: induction, and a copy chain.

Three layers of four heads. Layer 0, head 0 attends to the previous token and notes it down (`before`). Then either

    induction   layer 1, head 1 looks for positions whose `before` is the current token and says their token,
    copy        layer 1, head 1 attends to the previous token and says its `before`: the token two places back.

All other heads and MLPs are random. They write loudly to a part of the stream that only they read, and softly to all
of it, so that their edges matter a little, and the planted ones a lot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.model import Subject
from circuitlit.tasks.pair import Batch

TOKENS, PLACES, WIDTH, D = 12, 24, 64, 256
LAYERS, HEADS = 3, 4
WORD, BEFORE, SAID, JUNK, HERE = 0, TOKENS, 2 * TOKENS, 3 * TOKENS, 3 * TOKENS + 40  # parts of the stream
CONTENT = 20  # first dimension of a head in which tokens are compared: a pair that rotary embeddings hardly turn
LOUD, SOFT = 0.02, 0.004
SHARED = {"vocab_size": TOKENS, "tie_word_embeddings": False}
CONFIGS = {
    "gpt2": {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_inner": 32, "n_positions": PLACES},
    "gpt_neox": {
        "hidden_size": D,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": PLACES,
        "rotary_pct": 1.0,
        "rotary_emb_base": 1_000_000,
    },
    "llama": {
        "hidden_size": D,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": WIDTH,
        "attention_bias": True,
        "max_position_embeddings": PLACES,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
}


@dataclass
class Head:
    """One head's maps from the stream and back; biases of query and key."""

    query: Float[Tensor, "d width"]
    key: Float[Tensor, "d width"]
    value: Float[Tensor, "d width"]
    out: Float[Tensor, "width d"]
    query_bias: Float[Tensor, "width"]
    key_bias: Float[Tensor, "width"]


def planted_subject(name: str, circuit: str, seed: int) -> Subject:
    """A model of an architecture with one circuit in it and distractors drawn by a seed."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **SHARED, **CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            norm = "norm" in parameter_name or "ln_" in parameter_name
            parameter.fill_(1.0 if norm and parameter_name.endswith("weight") else 0.0)
        heads = [[_distractor() for _ in range(HEADS)] for _ in range(LAYERS)]
        heads[0][0], heads[1][1] = _previous(name, WORD, BEFORE), _second(name, circuit)
        for layer, of_layer in enumerate(heads):
            {"gpt2": _write_gpt2, "gpt_neox": _write_neox, "llama": _write_llama}[name](model, layer, of_layer)
        _embed(model, name)
    return Subject(model, name=f"{name} {circuit}")


def true_edges(subject: Subject, circuit: str) -> Bool[Tensor, "edge"]:
    """The planted edges, typed by hand; with grouped queries keys and values belong to the group of head 1."""
    shared = 1 if subject.graph.n_kv_heads == HEADS else 0
    names = {
        "induction": (f"a0.h0->a1.h{shared}<k>", "input->a1.h1<q>", f"input->a1.h{shared}<v>"),
        "copy": (f"a0.h0->a1.h{shared}<v>",),
    }[circuit]
    found = torch.zeros(subject.graph.n_edges, dtype=torch.bool)
    found[[subject.graph.edge_index(edge) for edge in ("input->a0.h0<v>", *names, "a1.h1->logits")]] = True
    return found


def pairs(circuit: str, rows: int, seed: int) -> Batch:
    """Lists of different tokens, begun anew; the corrupted prompts have other lists."""
    draw = torch.Generator().manual_seed(seed)
    length, place = 8, 3

    def lists() -> Tensor:
        return torch.stack([torch.randperm(TOKENS, generator=draw)[:length] for _ in range(rows)])

    clean, corrupted = lists(), lists()
    index = torch.arange(rows)
    answer = clean[:, place + 1] if circuit == "induction" else clean[:, place - 2]
    wrong = clean[:, (place + 4) % length]
    ids = [torch.cat([one, one[:, : place + 1]], 1) for one in (clean, corrupted)]
    if circuit == "induction":  # what the corrupted prompt ends in has not been said before
        strangers = [next(t for t in range(TOKENS) if t not in row.tolist()) for row in corrupted]
        ids[1][:, -1] = torch.tensor(strangers)
    return Batch(
        index=index,
        group=index,
        clean=ids[0],
        corrupted=ids[1],
        lengths=torch.full((rows,), length + place + 1),
        positions=torch.full((rows, 1), length + place),
        answer=answer[:, None],
        answer_mask=torch.ones(rows, 1, dtype=torch.bool),
        contrast=torch.zeros(rows, dtype=torch.long),
        wrong=wrong,
        roles=torch.zeros(rows, length + place + 1, dtype=torch.long),
        choices=torch.empty(rows, 0, dtype=torch.long),
        signs=torch.empty(rows, 0, dtype=torch.long),
    )


def _distractor() -> Head:
    query, key, value = (torch.randn(D, WIDTH) / D**0.5 for _ in range(3))
    return Head(query, key, value, _noise(WIDTH), torch.zeros(WIDTH), torch.zeros(WIDTH))


def _noise(rows: int) -> Float[Tensor, "rows d"]:
    """A random map that is loud on the junk and soft elsewhere, but for the positions."""
    scale = torch.full((D,), SOFT)
    scale[JUNK:HERE], scale[HERE:] = LOUD, 0.0
    return torch.randn(rows, D) * scale


def _blank() -> Head:
    query, key, value = (torch.zeros(D, WIDTH) for _ in range(3))
    return Head(query, key, value, torch.zeros(WIDTH, D), torch.zeros(WIDTH), torch.zeros(WIDTH))


def _reads(source: int, target: int) -> Head:
    """A head that moves one part of the stream to another."""
    head = _blank()
    head.value[source : source + TOKENS, :TOKENS] = torch.eye(TOKENS)
    head.out[:TOKENS, target : target + TOKENS] = torch.eye(TOKENS) / 4
    return head


def _previous(name: str, source: int, target: int) -> Head:
    """Attends to the previous token: by positions in the stream, or by a turn between query and key."""
    head = _reads(source, target)
    if name == "gpt2":
        sharp = 1.5 if source == WORD else 4.0  # the stream has grown by then
        head.query[HERE : HERE + PLACES, :PLACES] = sharp * torch.eye(PLACES)
        head.key[HERE : HERE + PLACES, :PLACES] = sharp * torch.eye(PLACES).roll(1, 1)
        return head
    pairs_of = torch.arange(8)
    angle = 1_000_000.0 ** (-pairs_of / (WIDTH / 2))
    head.query_bias[pairs_of], head.query_bias[pairs_of + WIDTH // 2] = angle.cos() * 12, -angle.sin() * 12
    head.key_bias[pairs_of] = 12.0
    return head


def _second(name: str, circuit: str) -> Head:
    if circuit == "copy":
        return _previous(name, BEFORE, SAID)
    head = _reads(WORD, SAID)
    inside = slice(CONTENT, CONTENT + TOKENS)
    head.query[WORD : WORD + TOKENS, inside] = 2 * torch.eye(TOKENS)
    head.key[BEFORE : BEFORE + TOKENS, inside] = 2 * torch.eye(TOKENS)
    return head


def _embed(model: Any, name: str) -> None:
    model.get_input_embeddings().weight[:, WORD : WORD + TOKENS] = torch.eye(TOKENS)
    model.get_output_embeddings().weight[:, SAID : SAID + TOKENS] = torch.eye(TOKENS)
    if name == "gpt2":
        model.transformer.wpe.weight[:, HERE : HERE + PLACES] = torch.eye(PLACES)


def _write_gpt2(model: Any, layer: int, heads: list[Head]) -> None:
    block = model.transformer.h[layer]
    maps = [torch.cat([getattr(head, kind) for head in heads], 1) for kind in ("query", "key", "value")]
    block.attn.c_attn.weight.copy_(torch.cat(maps, 1))
    block.attn.c_proj.weight.copy_(torch.cat([head.out for head in heads]))
    block.mlp.c_fc.weight.copy_(torch.randn(D, 32) / D**0.5)
    block.mlp.c_proj.weight.copy_(_noise(32))


def _write_neox(model: Any, layer: int, heads: list[Head]) -> None:
    block = model.gpt_neox.layers[layer]
    for number, head in enumerate(heads):
        for place, kind in enumerate(("query", "key", "value")):
            start = (3 * number + place) * WIDTH
            block.attention.query_key_value.weight[start : start + WIDTH] = getattr(head, kind).T
            if kind != "value":
                block.attention.query_key_value.bias[start : start + WIDTH] = getattr(head, f"{kind}_bias")
    block.attention.dense.weight.copy_(torch.cat([head.out for head in heads]).T)
    block.mlp.dense_h_to_4h.weight.copy_((torch.randn(D, 32) / D**0.5).T)
    block.mlp.dense_4h_to_h.weight.copy_(_noise(32).T)


def _write_llama(model: Any, layer: int, heads: list[Head]) -> None:
    """Heads 0 and 1, and 2 and 3, share keys and values: those of the planted one, else of the first."""
    block = model.model.layers[layer]
    block.self_attn.q_proj.weight.copy_(torch.cat([head.query for head in heads], 1).T)
    block.self_attn.q_proj.bias.copy_(torch.cat([head.query_bias for head in heads]))
    shared = [heads[1] if layer == 1 else heads[0], heads[2]]
    block.self_attn.k_proj.weight.copy_(torch.cat([head.key for head in shared], 1).T)
    block.self_attn.k_proj.bias.copy_(torch.cat([head.key_bias for head in shared]))
    block.self_attn.v_proj.weight.copy_(torch.cat([head.value for head in shared], 1).T)
    block.self_attn.o_proj.weight.copy_(torch.cat([head.out for head in heads]).T)
    for part in (block.mlp.gate_proj, block.mlp.up_proj):
        part.weight.copy_((torch.randn(D, 32) / D**0.5).T)
    block.mlp.down_proj.weight.copy_(_noise(32).T)
