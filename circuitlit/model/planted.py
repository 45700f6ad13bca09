"""A random Llama with copies of one mechanism written by hand: does a search find what is surely there?

A copy is a chain of three heads. Each looks at the previous token and moves a part of the stream on, so that the model
says the token three places back. Either copy suffices, because what is said is sharp. All other heads and MLPs are
random: they write loudly to a part of the stream that only they read, and softly to all of it but the copies' own.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.model.subject import Subject
from circuitlit.surroundings import seeded
from circuitlit.tasks import Pairs

TOKENS, MUTE = 12, 4  # words, and the last of them, which the model cannot say
LENGTH, PLACE, BACK = 8, 3, 3  # words of a list, how far it is said again, which word is the answer
WIDTH, LEAST, INNER, JUNK = 32, 112, 16, 40  # of a head, the stream at least, an MLP, and the stream's loud part
BASE, TURNED, SHARP = 1_000_000.0, 8, 12.0  # of rotary embeddings: their base, pairs that tell places, and how clearly
SAID, FREE = TOKENS, JUNK + 2 * TOKENS  # where the stream holds what is said, and what the copies hand on
LOUD, SOFT, SAYS = 0.08, 0.016, 2.5  # size of random writes for a model of one writer, and of the unembedding


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0, w1, ... whose tokens are their numbers."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(TOKENS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def places_back(train: int = 64, held_out: int = 32, seed: int = 0) -> Pairs:
    """Lists of different words, begun anew; the answer is the word three places back.

    Corrupted prompts are of words that the model cannot say, so that a copy that is cut says nothing, rather than
    something else.

    Args:
        train, held_out: pairs of the training split, and of validation and test.
        seed: of the words.
    """
    draw, rows, said = random.Random(seed), [], range(TOKENS - MUTE)
    for split, count in (("train", train), ("val", held_out), ("test", held_out)):
        for _ in range(count):
            clean, corrupted = draw.sample(said, LENGTH), draw.choices(range(TOKENS - MUTE, TOKENS), k=LENGTH)
            texts = [" ".join(f"w{word}" for word in (*own, *own[: PLACE + 1])) for own in (clean, corrupted)]
            answers = {"answer": f" w{clean[PLACE - BACK]}", "wrong_answer": f" w{clean[PLACE + 1]}"}
            rows.append({"clean": texts[0], "corrupted": texts[1], **answers, "split": split})
    return Pairs.from_list(rows)


def planted_copies(graph: Graph, seed: int = 0) -> tuple[Subject, list[list[int]]]:
    """A random Llama with as many layers and heads as a graph has, and two copies of a chain in it.

    Args:
        graph: whose layers and heads it has.
        seed: of all random weights.

    Returns:
        The model, and the numbers of each copy's edges.

    Raises:
        UserError: too few layers or heads for two copies without a common edge.
    """
    depth, last = graph.n_layers, graph.n_heads - 1
    if depth < 3 or graph.n_kv_heads < 2:
        raise UserError("two copies of three heads need three layers with two key/value heads")
    places = [place * depth // 3 for place in range(3)]
    chains = [[(layer, 0) for layer in places], [(layer, last) for layer in places]]
    config, noise = _config(graph), (graph.n_layers * graph.writers_per_layer) ** -0.5
    scale = torch.full((config.hidden_size,), SOFT * noise)
    scale[2 * TOKENS : FREE], scale[FREE:] = LOUD * noise, 0.0
    with seeded(seed), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.copy_(torch.randn_like(weight) * scale[:, None])
            elif name.endswith("proj.weight"):
                weight.copy_(torch.randn_like(weight) / weight.shape[1] ** 0.5)
            else:
                weight.zero_()
        for place, chain in enumerate(chains):
            begin = FREE + 2 * TOKENS * place
            ends = (0, begin, begin + TOKENS, SAID)
            for (layer, head), source, target in zip(chain, ends, ends[1:], strict=False):
                _write(model.model.layers[layer].self_attn, head, graph, source, target)
        model.get_input_embeddings().weight[:, :TOKENS] = torch.eye(TOKENS)
        said = TOKENS - MUTE
        model.get_output_embeddings().weight[:said, SAID : SAID + said] = SAYS * torch.eye(said)
    subject = Subject(model, name="random Llama with two copies", tokenizer=word_tokenizer())
    return subject, [_edges(subject.graph, chain) for chain in chains]


def _config(graph: Graph) -> PretrainedConfig:
    return AutoConfig.for_model(
        "llama",
        hidden_size=-(-LEAST // graph.n_heads) * graph.n_heads,
        intermediate_size=INNER,
        num_hidden_layers=graph.n_layers,
        num_attention_heads=graph.n_heads,
        num_key_value_heads=graph.n_kv_heads,
        head_dim=WIDTH,
        attention_bias=True,
        vocab_size=TOKENS,
        max_position_embeddings=2 * LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def _write(attention: Any, head: int, graph: Graph, source: int, target: int) -> None:
    """A head that looks at the previous token and moves one part of the stream to another.

    It finds the place by a turn between query and key, which are constant.
    """
    shared = head // (graph.n_heads // graph.n_kv_heads)
    query, key = slice(head * WIDTH, (head + 1) * WIDTH), slice(shared * WIDTH, (shared + 1) * WIDTH)
    turns = torch.arange(TURNED)
    angle = BASE ** (-turns / (WIDTH / 2))
    for part, rows in (("q", query), ("k", key), ("v", key)):
        getattr(attention, f"{part}_proj").weight[rows] = 0
    attention.q_proj.bias[query] = _turned(angle.cos() * SHARP, -angle.sin() * SHARP)
    attention.k_proj.bias[key] = _turned(torch.full((TURNED,), SHARP), torch.zeros(TURNED))
    attention.v_proj.weight[shared * WIDTH : shared * WIDTH + TOKENS, source : source + TOKENS] = torch.eye(TOKENS)
    attention.o_proj.weight[:, query] = 0
    attention.o_proj.weight[target : target + TOKENS, head * WIDTH : head * WIDTH + TOKENS] = torch.eye(TOKENS) / 4


def _turned(first: Float[Tensor, "turned"], second: Float[Tensor, "turned"]) -> Float[Tensor, "width"]:
    found = torch.zeros(WIDTH)
    found[:TURNED], found[WIDTH // 2 : WIDTH // 2 + TURNED] = first, second
    return found


def _edges(graph: Graph, chain: list[tuple[int, int]]) -> list[int]:
    group, before, names = graph.n_heads // graph.n_kv_heads, "input", []
    for layer, head in chain:
        names.append(f"{before}->a{layer}.h{head // group}<v>")
        before = f"a{layer}.h{head}"
    return [graph.edge_index(name) for name in (*names, f"{before}->logits")]
