"""A GPT-2 whose heads were written by hand: every score must be 1 for its head and near 0 for the others."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.model import Subject

TOKENS, PLACES = 12, 24
WIDTH = TOKENS + PLACES  # of a head
HEADS = 3
WORD, BEFORE, HERE = 0, TOKENS, 2 * TOKENS  # where a token, the token before it and the position stand in the stream
SHARP = 30.0


def planted() -> Subject:
    """Layer 0: a previous-token head, a duplicate-token head. Layer 1: induction, copy suppression, successor."""
    numbers = {"n_embd": HEADS * WIDTH, "n_layer": 2, "n_head": HEADS, "vocab_size": TOKENS, "n_positions": PLACES}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **numbers)).double()
    transformer = model.transformer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
        transformer.wte.weight[:, WORD : WORD + TOKENS] = torch.eye(TOKENS)
        transformer.wpe.weight[:, HERE : HERE + PLACES] = torch.eye(PLACES)
        first, second = (block.attn for block in transformer.h)
        shift = torch.eye(PLACES).roll(1, 1)
        _attend(first, 0, query=[(HERE, torch.eye(PLACES), 0)], key=[(HERE, shift, 0)])
        _write(first, 0, torch.eye(TOKENS), BEFORE)
        same_token = (WORD, torch.eye(TOKENS), 0)
        _attend(
            first,
            1,
            query=[same_token, (HERE, -torch.eye(PLACES), TOKENS)],
            key=[same_token, (HERE, torch.eye(PLACES), TOKENS)],
        )
        _attend(second, 0, query=[same_token], key=[(BEFORE, torch.eye(TOKENS), 0)])
        _write(second, 0, torch.eye(TOKENS), WORD)
        _attend(second, 1, query=[same_token], key=[same_token])
        _write(second, 1, -torch.eye(TOKENS), WORD)
        _write(second, 2, torch.eye(TOKENS).roll(1, 1), WORD)
        mlp = transformer.h[0].mlp  # passes tokens on, as real models' first MLPs do
        mlp.c_fc.weight[WORD : WORD + TOKENS, :TOKENS] = 2 * torch.eye(TOKENS)
        mlp.c_proj.weight[:TOKENS, WORD : WORD + TOKENS] = 0.02 * torch.eye(TOKENS)
    return Subject(model)


Block = tuple[int, torch.Tensor, int]  # first dimension of the stream, map, first dimension of the head


def _attend(attention, head: int, query: list[Block], key: list[Block]) -> None:
    for part, blocks in ((0, query), (1, key)):
        for stream, matrix, inside in blocks:
            rows = slice(stream, stream + len(matrix))
            start = part * HEADS * WIDTH + head * WIDTH + inside
            attention.c_attn.weight[rows, start : start + matrix.shape[1]] = SHARP**0.5 * matrix.double()


def _write(attention, head: int, matrix: torch.Tensor, stream: int) -> None:
    """Value: the token; output: `matrix` of it."""
    start = 2 * HEADS * WIDTH + head * WIDTH
    attention.c_attn.weight[WORD : WORD + TOKENS, start : start + TOKENS] = torch.eye(TOKENS).double()
    rows = slice(head * WIDTH, head * WIDTH + TOKENS)
    attention.c_proj.weight[rows, stream : stream + TOKENS] = matrix.double()


def permutations(rows: int) -> torch.Tensor:
    """Token 0 in front, then all others in some order, twice over: each has exactly one earlier occurrence."""
    generator = torch.Generator().manual_seed(0)
    once = torch.stack([1 + torch.randperm(TOKENS - 1, generator=generator) for _ in range(rows)])
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), once, once], 1)
