"""Words and templates: what the generators of prompts are made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError

Word = TypeVar("Word", str, tuple[str, str])
_SLOT = re.compile(r"\{(\w+)\}")


def single_tokens(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that are one known token after a space, in their order."""
    if not words:
        return []
    lead = "and"
    before = tokenizer(lead, add_special_tokens=False)["input_ids"]
    rows = tokenizer([f"{lead} {word}" for word in words], add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return [
        word
        for word, row in zip(words, rows, strict=True)
        if len(row) == len(before) + 1 and row[:-1] == before and row[-1] != unknown
    ]


def usable(task: str, kind: str, words: str, tokenizer: PreTrainedTokenizerBase, needed: int) -> list[str]:
    """Those of some words, separated by spaces, that are single tokens.

    Raises:
        UserError: fewer than `needed` are.
    """
    found = single_tokens(words.split(), tokenizer)
    return _enough(task, kind, found, needed)


def usable_pairs(
    task: str, kind: str, words: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, needed: int
) -> list[tuple[str, str]]:
    """Those of some pairs of words (noun and plural, say) in which both are single tokens; errors as in `usable`."""
    single = set(single_tokens([word for both in words for word in both], tokenizer))
    found = [both for both in words if single.issuperset(both)]
    return _enough(task, kind, found, needed)


def _enough(task: str, kind: str, found: list[Word], needed: int) -> list[Word]:
    if len(found) < needed:
        raise UserError(
            f"task {task}: only {len(found)} of its {kind} are single tokens of this tokenizer, {needed} are needed; "
            "take another model or bring pairs of your own: task=jsonl task.build.path=FILE"
        )
    return found


def count_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a text, without special ones."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def follows(prompt: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that are one known token after the prompt and leave the prompt's tokens as they are."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rows = tokenizer([prompt + text for text in texts], add_special_tokens=False)["input_ids"]
    return [
        text for text, row in zip(texts, rows, strict=True) if row[:-1] == before and row[-1] != tokenizer.unk_token_id
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


def slots_of(template: str) -> tuple[str, ...]:
    """The names of a template's slots, each once, in their order."""
    return tuple(dict.fromkeys(_pieces(template)[1::2]))


@cache
def _pieces(template: str) -> tuple[str, ...]:
    return tuple(_SLOT.split(template))
