"""A two-layer GPT-2 that looks facts up: heads read relation and subject, an MLP has the table, a head answers."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.model import Subject
from circuitlit.tasks import Batch

SUBJECTS, RELATIONS = 4, 2
OBJECTS = SUBJECTS * RELATIONS
TOKENS = SUBJECTS + RELATIONS + OBJECTS + 1  # subjects, relations, objects, the last prompt token
PLACES, HEADS = 3, 3
WORD = 0
SUBJECT = WORD + TOKENS  # where the stream holds the subject's number, the relation's, the table's entry, what is said
RELATION = SUBJECT + SUBJECTS
ENTRY = RELATION + RELATIONS
SAID = ENTRY + OBJECTS
HERE = SAID + OBJECTS
WIDTH = 28  # of a head
SHARP = 100.0
ROLE_NAMES = ("other", "relation", "subject", "end")
FOUND = {"entity": "a0.h0", "relation": "a0.h1", "retrieval": "a1.h0"}


def planted_lookup(layers: int = 2) -> Subject:
    """Layer 0: h0 reads the subject, h1 the relation, the MLP looks both up. Layer 1: h0 says the entry.

    a0.h2 looks at the subject and writes nothing; a1.h1 looks at the subject and writes where nothing is read; a1.h2
    looks at the relation and writes its number again. Further layers do nothing.
    """
    d, width = HEADS * WIDTH, WIDTH
    numbers = {"n_embd": d, "n_layer": layers, "n_head": HEADS, "vocab_size": TOKENS, "n_positions": 8}
    config = AutoConfig.for_model("gpt2", **numbers)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        transformer = model.transformer
        transformer.wte.weight[:, WORD : WORD + TOKENS] = torch.eye(TOKENS)
        transformer.wpe.weight[:PLACES, HERE : HERE + PLACES] = torch.eye(PLACES)
        first, second = (block.attn for block in transformer.h[:2])

        def head(attention, number: int, place: int, read: slice, write: slice) -> None:
            """The last token attends to a place; what stands there in `read` is written to `write`."""
            query, key, value = (part * d + number * width for part in range(3))
            attention.c_attn.weight[HERE + 2, query] = SHARP
            attention.c_attn.weight[HERE + place, key] = SHARP
            count = read.stop - read.start
            attention.c_attn.weight[read, value : value + count] = torch.eye(count).double()
            rows = slice(number * width, number * width + count)
            attention.c_proj.weight[rows, write] = torch.eye(count).double()

        subjects, relations = slice(0, SUBJECTS), slice(SUBJECTS, SUBJECTS + RELATIONS)
        entry, said, nowhere = slice(ENTRY, ENTRY + OBJECTS), slice(SAID, SAID + OBJECTS), slice(d - SUBJECTS, d)
        head(first, 0, 1, subjects, slice(SUBJECT, SUBJECT + SUBJECTS))
        head(first, 1, 0, relations, slice(RELATION, RELATION + RELATIONS))
        head(first, 2, 1, subjects, nowhere)
        first.c_proj.weight[2 * width : 3 * width] = 0
        head(second, 0, 2, entry, said)
        head(second, 1, 1, subjects, nowhere)
        head(second, 2, 0, relations, slice(RELATION, RELATION + RELATIONS))
        mlp = transformer.h[0].mlp
        for number in range(OBJECTS):  # subject and relation, both of them
            mlp.c_fc.weight[SUBJECT + number // RELATIONS, number] = 60.0
            mlp.c_fc.weight[RELATION + number % RELATIONS, number] = 60.0
            mlp.c_fc.bias[number] = -90.0
            mlp.c_proj.weight[number, ENTRY + number] = 1 / 30
        model.lm_head.weight[SUBJECTS + RELATIONS : -1, SAID : SAID + OBJECTS] = 5 * torch.eye(OBJECTS)
        for block in transformer.h:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        transformer.ln_f = nn.Identity()
    return Subject(model)


def lookups() -> Batch:
    """Every fact against every other subject: relation, subject, the last token -> object."""
    rows = [(r, s, other) for r in range(RELATIONS) for s in range(SUBJECTS) for other in range(SUBJECTS) if other != s]

    def prompts(which: int) -> torch.Tensor:
        return torch.tensor([[SUBJECTS + row[0], row[which], TOKENS - 1] for row in rows])

    def objects(which: int) -> torch.Tensor:
        return torch.tensor([SUBJECTS + RELATIONS + row[which] * RELATIONS + row[0] for row in rows])

    count = len(rows)
    return Batch(
        index=torch.arange(count),
        group=torch.arange(count),
        clean=prompts(1),
        corrupted=prompts(2),
        lengths=torch.full((count,), 3),
        positions=torch.full((count, 1), 2),
        answer=objects(1)[:, None],
        answer_mask=torch.ones(count, 1, dtype=torch.bool),
        contrast=torch.zeros(count, dtype=torch.long),
        wrong=objects(2),
        roles=torch.tensor([1, 2, 3]).repeat(count, 1),
        choices=torch.empty(count, 0, dtype=torch.long),
        signs=torch.empty(count, 0, dtype=torch.long),
    )
