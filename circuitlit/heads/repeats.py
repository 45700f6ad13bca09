"""Induction, duplicate-token and previous-token scores: mean attention on diagonals over repeated random tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.heads.attention import Heads

LOWEST, HIGHEST = 100, 20_000  # token ids: below are bytes and special tokens, above are rare ones
MIN_SEQUENCES = 16


def repeated_tokens(
    vocabulary: int, sequences: int, length: int, seed: int, bos: int | None = None, repeats: int = 2
) -> Int[Tensor, "batch pos"]:
    """Uniform random tokens, each sequence said `repeats` times in a row.

    Args:
        vocabulary: tokens of the model; a small one (below 1,000) is used whole.
        sequences: rows, at least 16.
        length: tokens before the repetition.
        seed: of the draw.
        bos: a token to put in front, or None.
        repeats: 1 gives sequences without a repetition.

    Raises:
        UserError: too few sequences for a score that is not mostly noise, or no room for a repetition.
    """
    if sequences < MIN_SEQUENCES or length < 2:
        raise UserError(
            f"heads.repeats: {sequences} sequences of {length} tokens; take at least {MIN_SEQUENCES} sequences of 2"
        )
    low, high = (LOWEST, min(HIGHEST, vocabulary)) if vocabulary >= 1000 else (0, vocabulary)
    once = torch.randint(low, high, (sequences, length), generator=torch.Generator().manual_seed(seed))
    ids = once.repeat(1, repeats)
    return ids if bos is None else torch.cat([torch.full((sequences, 1), bos), ids], 1)


def front_token(tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The token that stands for the beginning of a text: BOS, else EOS (GPT-2, Pythia), None without a tokenizer."""
    if tokenizer is None:
        return None
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if token is None else int(token)  # type: ignore[arg-type]


def repeat_scores(
    heads: Heads, ids: Int[Tensor, "batch pos"], length: int, rows: int = 8
) -> dict[str, Float[Tensor, "layer head"]]:
    """Mean attention, from 0 to 1, of every head on three diagonals.

    `induction`: from a token of the second half to the one after its first occurrence (`length - 1` back).
    `duplicate_token`: from a token of the second half to its first occurrence (`length` back).
    `previous_token`: from every token to the one before.

    Args:
        heads: the subject's.
        ids: of `repeated_tokens`, a front token included.
        length: tokens before the repetition.
        rows: sequences run at once.

    Source: circuit analyses across training (arXiv 2407.10827) uses 2 sequences without BOS, which is noisy.
    """
    device, graph = heads.subject.device, heads.graph
    second = ids.shape[1] - length  # first position of the repetition
    begin = {"induction": second, "duplicate_token": second, "previous_token": 1}
    back = {"induction": length - 1, "duplicate_token": length, "previous_token": 1}
    sums = {name: torch.zeros(graph.n_layers, graph.n_heads, dtype=torch.float64) for name in begin}
    for part in ids.split(rows):
        for layer, pattern in enumerate(heads.patterns(part.to(device))):
            for name, start in begin.items():
                diagonal = pattern.diagonal(-back[name], -2, -1)[..., start - back[name] :]
                sums[name][layer] += diagonal.mean(-1).sum(0).double().cpu()
    return {name: total / len(ids) for name, total in sums.items()}
