"""Induction: a list of random words, begun a second time: "List: tree cup lamp tree cup" -> " lamp".

A corrupted prompt ends in a word that the list does not hold, so that there is nothing to look up.

Source: Olsson et al. 2022, "In-context learning and induction heads" (random sequences, repeated).
"""

from __future__ import annotations

import random
import re

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import single_tokens

# "previous" is the first mention of the last word, "copied" the word after it, which is the answer.
ROLES = (OTHER, "previous", "copied", "repeated", END)

LEAD = "List:"
_WORD = re.compile(r"[Ġ▁]([a-z]{3,})")  # how byte-level and SentencePiece vocabularies write a word after a space
MOST = 4000  # words of the vocabulary's beginning, where common ones stand


def induction(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, length: int = 12
) -> Pairs:
    """Pairs of random words; no word of the test split occurs in another split.

    Args:
        tokenizer: the words are those of its vocabulary.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        length: words in the list, at least 4.

    Raises:
        UserError: `length` is out of range, or the vocabulary has too few words.
    """
    if length < 4:
        raise UserError(f"task induction: length={length} is too short to repeat; take at least 4")
    words = vocabulary(tokenizer)
    if len(words) < 4 * (length + 1):
        raise UserError(
            f"task induction: the vocabulary has {len(words)} whole words, {4 * (length + 1)} are needed; "
            "lower length or take another model"
        )
    of_key = {"seen": [word for i, word in enumerate(words) if i % 3], "held_out": words[::3]}

    def make(split: str, key: str, rng: random.Random) -> Pair:
        *listed, stranger = rng.sample(of_key[key], length + 1)
        return _pair(key, listed, stranger, rng.randrange(2, length - 1), rng)

    def capacity(split: str) -> int:
        return 10**9  # random lists hardly ever repeat

    keys = {"train": ["seen"], "val": ["seen"], "test": ["held_out"]}
    recipe = Recipe("induction", ROLES, keys, make, capacity, by_item=True)
    return draw_splits(recipe, (n_train, n_val, n_test), seed)


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lower-case words of at least three letters that are single tokens after a space, in the vocabulary's order."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    found = [match[1] for token, _ in tokens if (match := _WORD.fullmatch(token))]
    return single_tokens(found[:MOST], tokenizer)


def _pair(key: str, listed: list[str], stranger: str, place: int, rng: random.Random) -> Pair:
    """The list, and again its words up to number `place`; the next one is the answer."""
    words = [*listed, *listed[: place + 1]]
    names = ["other"] * len(listed) + ["repeated"] * (place + 1)
    names[place], names[place + 1] = "previous", "copied"
    text, spans = LEAD, []
    for word, name in zip(words, names, strict=True):
        spans.append((name, len(text) + 1, len(text) + 1 + len(word)))
        text += f" {word}"
    corrupted = " ".join([LEAD, *words[:-1], stranger])
    wrong = rng.choice([word for word in listed if word not in (listed[place], listed[place + 1])])
    roles = tuple(span for span in spans if span[0] != "other")
    return Pair(text, corrupted, f" {listed[place + 1]}", f" {wrong}", roles, group=" ".join(listed), template=key)
