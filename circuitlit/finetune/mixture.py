"""A small language, made up, in which several mechanisms pay: what little models are trained on from scratch.

Every row begins with the token `<s>` and is of one kind:

- repeats: uniform random tokens, said again and again after a random period; only induction foresees them.
- names: "When Ann and Bob went to the park , Bob gave the ball to Ann ." Copying the name that is not repeated.
- agreement: "the dogs near the cat are red ." The verb goes with the first noun.
- successor: runs through number words, days, months or letters.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import chain, product
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from circuitlit.errors import UserError

NAMES = (
    "Ann Bob Carl Dora Emma Fred Gina Hugo Ida Jack Kate Leo Mary Nick Olga Paul Rosa Sam Tina Umar Vera Will Yara Zoe"
).split()
PLACES = "park school shop beach house office station garden".split()
OBJECTS = "ball book drink ring letter cake coat watch".split()
NOUNS = "dog cat bird horse teacher doctor farmer singer driver artist boy girl".split()
PLURALS = [f"{noun}s" for noun in NOUNS]
QUALITIES = "red old tall quiet happy tired clever young".split()
BETWEEN = "near behind beside".split()
LISTS = (
    "one two three four five six seven eight nine ten eleven twelve".split(),
    "monday tuesday wednesday thursday friday saturday sunday".split(),
    "january february march april may june july august september october november december".split(),
    "a b c d e f g h i j k l m n o p q r s t u v w x y z".split(),
)
FILLERS = [f"{first}{second}" for first, second in product("ba de fi go ku la me ni so tu".split(), repeat=2)]
PLAIN = ". , When and went to the gave is are".split()
START, UNKNOWN = "<s>", "<unk>"
WORDS = (*PLAIN, *NAMES, *PLACES, *OBJECTS, *NOUNS, *PLURALS, *QUALITIES, *BETWEEN, *chain(*LISTS), *FILLERS)
VOCABULARY = {word: number for number, word in enumerate((UNKNOWN, START, *WORDS))}
KINDS = ("repeats", "names", "agreement", "successor")
RUN = 7  # words of one run through a list
SHORTEST = 6  # least period of a repetition

Rows = Int[np.ndarray, "row pos"]


def mixture_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; `<s>` in front of every text."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{START} $A", special_tokens=[(START, VOCABULARY[START])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=UNKNOWN, bos_token=START)


def mixture(shares: dict[str, float], rows: int, length: int, seed: int) -> Rows:
    """Rows of all kinds in random order.

    Args:
        shares: of every kind, by name; they need not sum to one.
        rows: how many.
        length: tokens of each, `<s>` included.
        seed: equal seeds give equal rows.

    Raises:
        UserError: an unknown kind, or shares that are negative or all zero.
    """
    unknown = sorted(set(shares) - set(KINDS))
    if unknown:
        raise UserError(f"pretrain.mixture: '{unknown[0]}' is unknown; choose from {', '.join(KINDS)}")
    weights = np.array([float(shares.get(kind, 0)) for kind in KINDS])
    if weights.min() < 0 or weights.sum() == 0 or length < 4 * SHORTEST:
        raise UserError(f"pretrain.mixture={shares}: give shares of at least 0, one above, and length {4 * SHORTEST}")
    rng = np.random.default_rng(seed)
    kinds = rng.choice(len(KINDS), rows, p=weights / weights.sum())
    made = np.full((rows, length), VOCABULARY[START], dtype=np.int16)
    for number, kind in enumerate(KINDS):
        own = np.flatnonzero(kinds == number)
        made[own, 1:] = _MAKERS[kind](rng, len(own), length - 1)
    return made


def _repeats(rng: np.random.Generator, rows: int, length: int) -> Rows:
    once = rng.integers(2, len(VOCABULARY), (rows, length))
    period = rng.integers(SHORTEST, max(SHORTEST, length // 3) + 1, (rows, 1))
    return np.take_along_axis(once, np.arange(length) % period, 1)


def _names(rng: np.random.Generator, rows: int, length: int) -> Rows:
    def sentences(count: int) -> list[str | Int[np.ndarray, "sentence"]]:
        first, second = _two(rng, NAMES, count)
        subject_first = rng.random(count) < 0.5
        subject, other = np.where(subject_first, first, second), np.where(subject_first, second, first)
        place, thing = _one(rng, PLACES, count), _one(rng, OBJECTS, count)
        clause = ["When", first, "and", second, "went", "to", "the", place]
        return [*clause, ",", subject, "gave", "the", thing, "to", other, "."]

    return _filled(sentences, rows, length)


def _agreement(rng: np.random.Generator, rows: int, length: int) -> Rows:
    def sentences(count: int) -> list[str | Int[np.ndarray, "sentence"]]:
        plural, attractor = rng.random((2, count)) < 0.5
        subjects, others = (rng.integers(0, len(NOUNS), count) for _ in range(2))
        nouns, plurals = (np.array([VOCABULARY[word] for word in words]) for words in (NOUNS, PLURALS))
        subject = np.where(plural, plurals[subjects], nouns[subjects])
        other = np.where(attractor, plurals[others], nouns[others])
        verb = np.where(plural, VOCABULARY["are"], VOCABULARY["is"])
        return ["the", subject, _one(rng, BETWEEN, count), "the", other, verb, _one(rng, QUALITIES, count), "."]

    return _filled(sentences, rows, length)


def _successor(rng: np.random.Generator, rows: int, length: int) -> Rows:
    ids = [np.array([VOCABULARY[word] for word in words]) for words in LISTS]

    def sentences(count: int) -> list[str | Int[np.ndarray, "sentence"]]:
        which, start = rng.integers(0, len(ids), count), rng.integers(0, 10**6, count)
        steps = [
            np.choose(which, [words[(start + step) % len(words)] for words in ids])  # type: ignore[arg-type]
            for step in range(RUN)
        ]
        return [*steps, "."]

    return _filled(sentences, rows, length)


def _filled(sentences: Callable[[int], list[Any]], rows: int, length: int) -> Rows:
    """Rows of sentences of one form, one after the other, cut at the end."""
    width = len(sentences(1))
    count = -(-length // width)
    parts = sentences(rows * count)
    columns = [np.full(rows * count, VOCABULARY[part]) if isinstance(part, str) else part for part in parts]
    return np.stack(columns, 1).reshape(rows, count * width)[:, :length]


def _one(rng: np.random.Generator, words: Sequence[str], count: int) -> Int[np.ndarray, "sentence"]:
    return np.array([VOCABULARY[word] for word in words])[rng.integers(0, len(words), count)]


def _two(rng: np.random.Generator, words: Sequence[str], count: int) -> Int[np.ndarray, "two sentence"]:
    """Two different words each."""
    first = rng.integers(0, len(words), count)
    second = (first + rng.integers(1, len(words), count)) % len(words)
    return np.array([VOCABULARY[word] for word in words])[np.stack([first, second])]


_MAKERS = {"repeats": _repeats, "names": _names, "agreement": _agreement, "successor": _successor}


def mixture_pairs(kind: str, count: int, seed: int, length: int = 12) -> list[dict[str, Any]]:
    """Pairs of prompts that test what a kind teaches, as lines of a jsonl task.

    Args:
        kind: one of KINDS.
        count: pairs; no two have the same clean prompt.
        seed: equal seeds give equal pairs.
        length: words before the repetition in pairs of the kind "repeats".

    Pairs of the kind "names" say where the indirect object and both mentions of the subject stand.
    """
    rng = random.Random(f"{kind}/{seed}")
    made: dict[str, dict[str, Any]] = {}
    for _ in range(100 * count):
        clean, corrupted, answer, wrong = _pair(kind, rng, length)
        pair: dict[str, Any] = {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong_answer": wrong}
        if kind == "names":
            pair["roles"] = _name_places(clean, answer.strip(), wrong.strip())
        made.setdefault(clean, pair)
        if len(made) == count:
            return list(made.values())
    raise UserError(f"pretrain.pairs: only {len(made)} different pairs of {kind} exist; ask for fewer than {count}")


def _name_places(text: str, other: str, subject: str) -> dict[str, list[int]]:
    """Characters of the indirect object and of both mentions of the subject."""
    (io,), (first, second) = ([list(m.span()) for m in re.finditer(rf"\b{name}\b", text)] for name in (other, subject))
    return {"io": io, "s1": first, "s2": second}


def _pair(kind: str, rng: random.Random, length: int) -> tuple[str, str, str, str]:
    if kind == "repeats":
        *listed, stranger = rng.sample(WORDS, length + 1)
        place = rng.randrange(1, length - 1)
        wrong = rng.choice([word for word in listed if word not in (listed[place], listed[place + 1])])
        begun = " ".join([*listed, *listed[:place]])
        return f"{begun} {listed[place]}", f"{begun} {stranger}", f" {listed[place + 1]}", f" {wrong}"
    if kind == "names":
        first, second = rng.sample(NAMES, 2)
        subject, other = rng.sample((first, second), 2)
        place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
        lead, rest = f"When {first} and {second} went to the {place} ,", f"gave the {thing} to"
        return f"{lead} {subject} {rest}", f"{lead} {other} {rest}", f" {other}", f" {subject}"
    if kind == "agreement":
        own, noun = rng.randrange(2), rng.randrange(len(NOUNS))
        rest = f"{rng.choice(BETWEEN)} the {rng.choice([*NOUNS, *PLURALS])}"
        clean, corrupted = (f"the {(NOUNS, PLURALS)[number][noun]} {rest}" for number in (own, 1 - own))
        return clean, corrupted, (" is", " are")[own], (" are", " is")[own]
    words = rng.choice(LISTS)
    run, start = rng.randrange(1, 4), rng.randrange(len(words))
    other = (start + rng.randrange(1, len(words))) % len(words)
    shown = [" ".join(words[(place + step) % len(words)] for step in range(run)) for place in (start, other)]
    return shown[0], shown[1], f" {words[(start + run) % len(words)]}", f" {words[(other + run) % len(words)]}"
