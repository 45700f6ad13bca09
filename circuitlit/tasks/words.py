"""Words and templates: what the generators of prompts are made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

_SLOT = re.compile(r"\{(\w+)\}")


def single_tokens(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that are one known token after a space, in their order."""
    lead = "and"
    before = tokenizer(lead, add_special_tokens=False)["input_ids"]
    rows = tokenizer([f"{lead} {word}" for word in words], add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return [
        word
        for word, row in zip(words, rows, strict=True)
        if len(row) == len(before) + 1 and row[:-1] == before and row[-1] != unknown
    ]


def fill(template: str, words: dict[str, str]) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """The template with a word in every `{slot}`.

    Returns:
        the text, and `(slot, start, end)` character spans of the words in it.
    """
    pieces: list[str] = []
    spans: list[tuple[str, int, int]] = []
    length = 0
    for place, piece in enumerate(_pieces(template)):
        text = words[piece] if place % 2 else piece
        if place % 2:
            spans.append((piece, length, length + len(text)))
        pieces.append(text)
        length += len(text)
    return "".join(pieces), tuple(spans)


@cache
def _pieces(template: str) -> tuple[str, ...]:
    return tuple(_SLOT.split(template))
