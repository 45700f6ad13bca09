"""Texts to tokens with their places in the text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError

Offsets = list[tuple[int, int]]


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens (BOS) that the tokenizer puts in front of every text.

    Raises:
        UserError: the tokenizer is not a fast one, so that it gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} gives no character offsets; load the model's fast tokenizer")
    whole = tokenizer("a")["input_ids"]
    return whole[: whole.index(tokenizer("a", add_special_tokens=False)["input_ids"][0])]


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, front: list[int]) -> list[list[int]]:
    """Token ids of every text, the `front` tokens included, without any special token at the end.

    A text that itself begins with the `front` tokens (a chat template's output) does not get them twice.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [ids if ids[: len(front)] == front else front + ids for ids in encoded["input_ids"]]


def tokenise_lists(
    lists: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, front: list[int]
) -> list[list[list[int]]]:
    """As `tokenise`, for each of several lists of texts, which may be empty."""
    texts = [text for of_list in lists for text in of_list]
    rows = iter(tokenise(texts, tokenizer, front) if texts else [])
    return [[next(rows) for _ in of_list] for of_list in lists]


def tokenise_with_offsets(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, front: list[int]
) -> list[tuple[list[int], Offsets]]:
    """As `tokenise`, with the characters `[start, end)` of every token; `(-1, -1)` for the added `front` tokens."""
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    outside = [(-1, -1)] * len(front)
    return [
        (ids, offsets) if ids[: len(front)] == front else (front + ids, outside + offsets)
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def touched(offsets: Offsets, start: int, end: int) -> range:
    """Positions of the tokens that hold a character of `[start, end)`."""
    first = bisect_right(offsets, start, key=lambda span: span[1])
    return range(first, bisect_left(offsets, end, key=lambda span: span[0]))
