"""Small transformers with one or two chains of three heads written by hand, each of which moves a token three places.

Copy 1 is heads a0.h0, a1.h1, a2.h0, copy 2 is a0.h2, a1.h2, a2.h2; all other heads and MLPs distract. What is planted:

    one    copy 1 alone
    two    both; what is said is sharp enough that either suffices
    both   both; what is said is so soft that both are needed
    half   copy 1, and a second head of layer 2 that does what a2.h0 does
"""

from __future__ import annotations

import torch
from planted_circuits import (
    CONFIGS,
    HEADS,
    LAYERS,
    SAID,
    SHARED,
    TOKENS,
    WORD,
    Head,
    _distractor,
    _embed,
    _previous,
    _write_gpt2,
    _write_llama,
    _write_neox,
)
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit import Circuit, EdgeScores, Subject, Workbench
from circuitlit.evaluate.find import prepare_bench
from circuitlit.model.planted import MUTE, places_back, word_tokenizer

FREE = 100  # first dimension of the stream that nobody writes to
WRITERS = {"gpt2": _write_gpt2, "gpt_neox": _write_neox, "llama": _write_llama}
SHARP = {"one": 2.5, "two": 2.5, "half": 2.5, "both": 0.2}
Chain = tuple[tuple[int, int], ...]  # layer and head of its members
FIRST, SECOND, BRANCH = ((0, 0), (1, 1), (2, 0)), ((0, 2), (1, 2), (2, 2)), ((0, 0), (1, 1), (2, 2))
CHAINS: dict[str, tuple[Chain, ...]] = {
    "one": (FIRST,),
    "two": (FIRST, SECOND),
    "both": (FIRST, SECOND),
    "half": (FIRST, BRANCH),
}


def planted_rivals(name: str, kind: str, seed: int, held_out: int = 32) -> Workbench:
    """A workbench of a model with what `kind` says planted, distractors drawn by a seed; so many test pairs."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SHARED, **CONFIGS[name]))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            norm = "norm" in parameter_name or "ln_" in parameter_name
            parameter.fill_(1.0 if norm and parameter_name.endswith("weight") else 0.0)
        heads = [[_distractor() for _ in range(HEADS)] for _ in range(LAYERS)]
        for chain in CHAINS[kind]:
            for (layer, head), written in zip(chain, _heads(name, chain[0][1]), strict=True):
                heads[layer][head] = written
        for layer, of_layer in enumerate(heads):
            WRITERS[name](model, layer, of_layer)
        _embed(model, name)
        model.get_output_embeddings().weight *= SHARP[kind]
        model.get_output_embeddings().weight[TOKENS - MUTE :] = 0
    subject = Subject(model, name=f"{name} {kind}", tokenizer=word_tokenizer())
    return prepare_bench(subject, places_back(held_out=held_out, seed=seed), 0.5)


def _heads(name: str, first: int) -> list[Head]:
    """The members of a chain; two chains that begin with the same head have the same parts of the stream."""
    slots = [FREE + TOKENS * (first + place) for place in range(2)]
    made = [_previous(name, *ends) for ends in ((WORD, slots[0]), (slots[0], slots[1]), (slots[1], SAID))]
    if name == "gpt2":
        for head in made[1:]:
            head.query, head.key = 1.5 * head.query, 1.5 * head.key
    return made


def edges_of(bench: Workbench, chain: Chain) -> list[int]:
    """Numbers of a chain's edges."""
    graph = bench.subject.graph
    group, names = graph.n_heads // graph.n_kv_heads, ["input"]
    edges = []
    for layer, head in chain:
        edges.append(f"{names[-1]}->a{layer}.h{head // group}<v>")
        names.append(f"a{layer}.h{head}")
    return [graph.edge_index(edge) for edge in (*edges, f"{names[-1]}->logits")]


def first_circuit(bench: Workbench, kind: str) -> Circuit:
    """Copy 1; both copies where both are needed."""
    scores = torch.zeros(1, bench.subject.graph.n_edges)
    for chain in CHAINS[kind] if kind == "both" else CHAINS[kind][:1]:
        scores[0, edges_of(bench, chain)] = 1.0
    return Circuit.cut(EdgeScores(bench.subject.graph, scores, "planted", kind="share"), int(scores.sum()))
