"""Pairs with something changed that the behaviour should not hang on: another corruption, a sentence in front."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.encode import encode
from circuitlit.tasks.encoded import EncodedPairs
from circuitlit.tasks.faults import BadRows
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.words import count_tokens

NEUTRAL = "It was a calm day."
# Slots of a task's clean prompt, and what replaces their words there: another slot's word, or another pair's (None).
SWAPS: Mapping[str, Mapping[str, tuple[str, str | None]]] = {
    name: {"the giver is the receiver": ("s2", "io"), "another giver": ("s2", None)}
    for name in ("ioi", "ioi_hard", "ioi_single")
} | {"gender_pronoun": {"the name of another pair": ("name", None)}}


def longer(pair: Pair, front: str = NEUTRAL, behind: int = 0) -> Pair:
    """The pair with a sentence in front of both prompts.

    Args:
        pair: the pair.
        front: the sentence.
        behind: characters of both prompts that stay ahead of it, a chat template's.
    """
    shift = len(front) + 1
    roles = tuple(
        (role, start + shift, end + shift) if start >= behind else (role, start, end) for role, start, end in pair.roles
    )
    clean, corrupted = (
        None if text is None else f"{text[:behind]}{front} {text[behind:]}" for text in (pair.clean, pair.corrupted)
    )
    assert clean is not None
    return replace(pair, clean=clean, corrupted=corrupted, roles=roles)


def swapped(pair: Pair, slot: str, word: str) -> Pair | None:
    """The pair whose corrupted prompt is the clean one with another word in a slot; None without the slot."""
    spans = sorted((start, end) for role, start, end in pair.roles if role == slot)
    if not spans:
        return None
    pieces, done = [], 0
    for start, end in spans:
        pieces += [pair.clean[done:start], word]
        done = end
    return replace(pair, corrupted="".join([*pieces, pair.clean[done:]]))


def corruptions(task: str, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> dict[str, list]:
    """The pairs under other corruptions, by name; None in place of a pair that has none.

    All tasks have "another prompt", the corrupted prompt of another pair with as many tokens.
    """
    made: dict[str, list] = {"another prompt": _others(pairs, tokenizer, random.Random(seed))}
    for name, (slot, source) in SWAPS.get(task, {}).items():
        rng = random.Random(seed)
        words = sorted({word for pair in pairs for word in _words(pair, source or slot)})
        made[name] = []
        for pair in pairs:
            own = _words(pair, source or slot) if source else [w for w in words if w not in _words(pair, None)]
            made[name].append(swapped(pair, slot, rng.choice(own)) if own else None)
    return made


def encode_some(
    pairs: Sequence[Pair | None], tokenizer: PreTrainedTokenizerBase, role_names: Sequence[str]
) -> tuple[list[int], EncodedPairs]:
    """Those of some pairs that can be encoded, and their numbers."""
    numbers = [number for number, pair in enumerate(pairs) if pair is not None]
    while True:
        try:
            return numbers, encode([pairs[number] for number in numbers], tokenizer, role_names)  # type: ignore[misc]
        except BadRows as error:
            faulty = {fault.number for fault in error.faults}
            numbers = [number for place, number in enumerate(numbers) if place not in faulty]


def _words(pair: Pair, slot: str | None) -> list[str]:
    return [pair.clean[start:end] for role, start, end in pair.roles if slot in (role, None)]


def _others(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> list[Pair | None]:
    """Each pair with the corrupted prompt of another one, which does not hold its answer."""
    by_length: dict[int, list[str]] = {}
    for pair in pairs:
        if pair.corrupted is not None:
            by_length.setdefault(count_tokens(pair.corrupted, tokenizer), []).append(pair.corrupted)
    made: list[Pair | None] = []
    for pair in pairs:
        same = by_length.get(count_tokens(pair.clean, tokenizer), [])
        others = [text for text in same if text != pair.corrupted and pair.answer.strip() not in text.split()]
        made.append(replace(pair, corrupted=rng.choice(others)) if others else None)
    return made
