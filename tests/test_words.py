"""Held-out words: no word of a slot and no sentence is in two splits but for what `test` shares on purpose."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks import (
    Pair,
    Pairs,
    arithmetic,
    boolean,
    docstring,
    encode,
    factual,
    gender_pronoun,
    greater_than,
    induction,
    ioi,
    ioi_hard,
    ioi_single,
    sva,
    two_hop,
)
from circuitlit.tasks.gender_pronoun import NOUNS as PEOPLE
from circuitlit.tasks.gender_pronoun import QUALITIES
from circuitlit.tasks.gender_pronoun import SENTENCES as TAGS
from circuitlit.tasks.greater_than import NOUNS as EVENTS
from circuitlit.tasks.greater_than import SENTENCES as SPANS
from circuitlit.tasks.ioi import OBJECTS, PLACES
from circuitlit.tasks.ioi import SENTENCES as SCENES
from circuitlit.tasks.names import BOYS, GIRLS
from circuitlit.tasks.sva import NOUNS as SUBJECTS
from circuitlit.tasks.sva import SENTENCES as CLAUSES
from circuitlit.tasks.sva import THINGS
from circuitlit.tasks.words import deal

# Each task's sentences, and its slots apart from years.
TEMPLATED: dict[str, tuple[Callable[..., Pairs], dict[str, str], set[str]]] = {
    "ioi": (ioi, SCENES, {"io", "s1", "s2", "place", "object"}),
    "ioi_hard": (ioi_hard, SCENES, {"io", "s1", "s2", "place", "object"}),
    "ioi_single": (ioi_single, {"went": SCENES["went"]}, {"io", "s1", "s2", "place", "object"}),
    "greater_than": (greater_than, SPANS, {"noun", "century"}),
    "gender_pronoun": (gender_pronoun, TAGS, {"name", "quality", "noun"}),
    "sva": (sva, CLAUSES, {"subject", "attractor"}),
}
COUNTS = {"n_train": 300, "n_val": 60, "n_test": 100, "n_new_words": 100, "seed": 0}


LISTS = (
    (BOYS, GIRLS, PLACES, OBJECTS),
    (BOYS, GIRLS, QUALITIES, PEOPLE),
    (SUBJECTS, THINGS),
    (EVENTS,),
)


def slot_words(pairs: list[Pair], slots: set[str]) -> set[str]:
    """Words in the slots of clean prompts, and what corruption puts into any."""
    words = {
        pair.clean[start:end][:2] if role == "century" else pair.clean[start:end]
        for pair in pairs
        for role, start, end in pair.roles
        if role in slots
    }
    for pair in pairs:
        both = zip(*(re.findall(r"\w+", text) for text in (pair.clean, pair.corrupted)), strict=True)
        words |= {other for own, other in both if own != other and not other.isdigit()}
    return {word.removesuffix("s") for word in words} if "attractor" in slots else words


def fixed_words(sentences: dict[str, str]) -> set[str]:
    return {word for text in sentences.values() for word in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", text))}


@pytest.mark.parametrize("lists", LISTS, ids=lambda lists: lists[0][:10])
def test_no_word_is_in_two_slots(lists: tuple[str, ...]) -> None:
    every = " ".join(lists).split()
    assert len(every) == len(set(every))


def check_words(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    task, sentences, slots = TEMPLATED[name]
    splits = task(tokenizer, **COUNTS)
    train, val, test, new = (
        slot_words(pairs, slots) for pairs in (splits.train, splits.val, splits.test, splits.new_words)
    )
    assert not train & val and not train & new and not val & new
    assert not test & (val | new) and len(test & train) > 0.9 * len(test)
    assert not (train | val | new) & fixed_words(sentences)
    assert not (train | val | new) & {word.lower() for word in fixed_words(sentences)}
    assert not [pair.clean for pair in splits.train if re.search(r"\ba [aeio]", pair.clean)]
    encode(splits.new_words[:20], tokenizer, splits.role_names)


@pytest.mark.parametrize("name", TEMPLATED)
def test_words_are_apart(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    check_words(name, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATED)
def test_words_of_the_packaged_tokenizer_are_apart(name: str, packaged: PreTrainedTokenizerBase) -> None:
    check_words(name, packaged)


@pytest.mark.parametrize("name", [name for name in TEMPLATED if name != "ioi_single"])
def test_eight_sentences_are_held_out_and_groups_join_their_variants(
    name: str, byte_bpe: PreTrainedTokenizerBase
) -> None:
    task, sentences, _ = TEMPLATED[name]
    splits = task(byte_bpe, **COUNTS)
    train, val, test, new = (
        {pair.unit for pair in own} for own in (splits.train, splits.val, splits.test, splits.new_words)
    )
    assert test == new and len(test) >= 8 and len(val) >= 4
    assert not train & val and not train & test and not val & test and train | val | test == set(sentences)
    every = splits.train + splits.val + splits.test + splits.new_words
    assert all(pair.template.split("/")[0] == pair.unit for pair in every)
    variants = {"ioi": 2, "ioi_hard": 2, "greater_than": 1, "gender_pronoun": 2, "sva": 4}[name]
    assert len({pair.template for pair in every}) == variants * len(sentences)


def test_one_sentence_is_one_group(byte_bpe: PreTrainedTokenizerBase) -> None:
    splits = ioi_single(byte_bpe, **COUNTS)
    assert {pair.unit for pair in splits.test + splits.new_words} == {"went"}


@pytest.mark.parametrize("name", TEMPLATED)
def test_new_words_can_be_left_out_and_change_nothing_else(name: str, byte_bpe: PreTrainedTokenizerBase) -> None:
    task, *_ = TEMPLATED[name]
    with_them, without = task(byte_bpe, 60, 20, 40, seed=1, n_new_words=30), task(byte_bpe, 60, 20, 40, seed=1)
    more = task(byte_bpe, 90, 20, 40, seed=1, n_new_words=30)
    assert len(with_them.new_words) == 30 and without.new_words == []
    assert (with_them.test, with_them.val, with_them.train) == (without.test, without.val, without.train)
    assert (more.test, more.val, more.new_words) == (with_them.test, with_them.val, with_them.new_words)


ITEMS: dict[str, Callable[..., Pairs]] = {
    "induction": induction,
    "docstring": docstring,
    "factual": factual,
    "two_hop": two_hop,
    "boolean": lambda *given, **named: boolean(*given, prompt="both", **named),
    **{
        f"arithmetic_{operation}": lambda *given, operation=operation, **named: arithmetic(
            *given, operation=operation, high=30, **named
        )
        for operation in ("add", "multiply", "lcm", "composite")
    },
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_are_apart(name: str, byte_bpe: PreTrainedTokenizerBase) -> None:
    splits = ITEMS[name](byte_bpe, 60, 20, 40, seed=2)
    train, val, test = ({pair.unit for pair in own} for own in (splits.train, splits.val, splits.test))
    assert "" not in train | val | test and len(test) > 10
    assert not train & val and not train & test and not val & test
    if name.startswith("arithmetic") and "composite" not in name:  # a + b is b + a
        numbers = [
            {tuple(sorted(map(int, re.findall(r"\d+", p.clean)[-2:]))) for p in own}
            for own in (splits.train, splits.test)
        ]
        assert not numbers[0] & numbers[1]
    if name in ("factual", "two_hop"):
        subjects = [{p.unit.split("/")[1] for p in own} for own in (splits.train, splits.val, splits.test)]
        assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2] and not subjects[1] & subjects[2]
        trained = "\n".join(text for p in splits.train for text in (p.clean, p.corrupted))
        assert not [subject for subject in subjects[2] if re.search(rf"\b{subject}\b", trained)]


def test_a_words_split_is_its_place() -> None:
    dealt = deal("a b c d e f g h i j".split())
    assert (dealt["train"], dealt["val"], dealt["new_words"]) == (list("abcfgh"), list("di"), list("ej"))
    assert dealt["test"] == dealt["train"]


def test_a_split_with_too_few_words_is_refused(
    byte_bpe: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = "store market school qqzzxx xxqqzz"  # one of each other split, none a token
    monkeypatch.setattr(importlib.import_module("circuitlit.tasks.ioi"), "PLACES", places)
    with pytest.raises(UserError, match=r"task ioi: only 0 of its places \(val\) are single tokens"):
        ioi(byte_bpe, 5, 5, 5, seed=0)
