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


def usable(task: str, kind: str, words: Sequence[Word], tokenizer: PreTrainedTokenizerBase, needed: int) -> list[Word]:
    """Those of some words that are single tokens; of a pair of words (noun and plural, say) both have to be.

    Raises:
        UserError: fewer than `needed` are.
    """
    forms = [(word,) if isinstance(word, str) else word for word in words]
    single = set(single_tokens([form for of_word in forms for form in of_word], tokenizer))
    found = [word for word, of_word in zip(words, forms, strict=True) if single.issuperset(of_word)]
    if len(found) < needed:
        raise UserError(
            f"task {task}: only {len(found)} of its {kind} are single tokens of this tokenizer, {needed} are needed; "
            "take another model or bring pairs of your own: task=jsonl task.build.path=FILE"
        )
    return found


def deal_words(
    task: str, kind: str, words: Sequence[Word], tokenizer: PreTrainedTokenizerBase, needed: int
) -> dict[str, list[Word]]:
    """The usable words of each split, dealt before they are looked up in the tokenizer; errors as in `usable`.

    So a word is in the same split for every tokenizer; `needed` is for each split.
    """
    return {split: usable(task, f"{kind} ({split})", own, tokenizer, needed) for split, own in deal(words).items()}


def deal(words: Sequence[Word]) -> dict[str, list[Word]]:
    """Words for each split: of every five, three for training and test, one for validation, one for `new_words`.

    A word's place decides, so append to a list and do not insert.
    """
    train, val, new = hands(words, (3, 1, 1))
    return {"train": train, "val": val, "test": train, "new_words": new}


def deal_sentences(sentences: Sequence[str], variants: Sequence[str] = ("",)) -> dict[str, list[str]]:
    """Templates for each split: of every five sentences, two for training, one for validation, two held out.

    The held-out ones are those of the test split and of `new_words`. A sentence's variants ("went/ABBA") stay together.
    """
    train, val, test = (
        [f"{sentence}/{variant}".rstrip("/") for sentence in own for variant in variants]
        for own in hands(sentences, (2, 1, 2))
    )
    return {"train": train, "val": val, "test": test, "new_words": test}


def hands(things: Sequence[Word], shares: tuple[int, ...]) -> tuple[list[Word], ...]:
    """Things dealt in turn to some hands, to each as many a turn as its share."""
    turn = [hand for hand, share in enumerate(shares) for _ in range(share)]
    return tuple(
        [t for place, t in enumerate(things) if turn[place % len(turn)] == hand] for hand in range(len(shares))
    )


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
