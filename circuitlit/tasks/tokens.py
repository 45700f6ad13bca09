"""Texts to tokens with their places in the text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer
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
    return [ids if ids[: len(front)] == front else front + ids for ids in (e.ids for e in _encodings(texts, tokenizer))]


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
    outside = [(-1, -1)] * len(front)
    encoded = ((encoding.ids, encoding.offsets) for encoding in _encodings(texts, tokenizer))
    return [
        (ids, offsets) if ids[: len(front)] == front else (front + ids, outside + offsets) for ids, offsets in encoded
    ]


def _encodings(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Sequence[Encoding]:
    """What the Rust tokenizer makes of each text; the library's wrapper takes longer than that to hand it out."""
    backend: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    return backend.encode_batch(list(texts), add_special_tokens=False)


def touched(offsets: Offsets, start: int, end: int) -> range:
    """Positions of the tokens that hold a character of `[start, end)`."""
    first = bisect_right(offsets, start, key=lambda span: span[1])
    return range(first, bisect_left(offsets, end, key=lambda span: span[0]))
