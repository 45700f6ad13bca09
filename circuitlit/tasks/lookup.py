"""Something looked up by subject and relation: "The capital of France is" -> " Paris", antonyms, past tenses, two hops.

A corrupted prompt has another subject of the same relation, with as many tokens, that goes with another object; that
object is the wrong answer. What a split's facts are about, clean and corrupted, occurs in no other split; the test
split's sentences do not either.

Source: facts and corruption by another subject of the relation follow Meng et al. 2022 (arXiv 2202.05262) and Yao et
al. 2024 (arXiv 2405.17969); the facts and sentences are our own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.facts import ANTONYMS, PAST_TENSE, RELATIONS, Relation
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import fill, hands

ROLES = (OTHER, "relation", "subject", END)
LEAST = 4  # facts of a relation and a split that go with equal token counts
_NAMED = re.compile("<(.+?)>")


def factual(
    tokenizer: PreTrainedTokenizerBase,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int,
    relations: Sequence[str] | None = None,
) -> Pairs:
    """Plain facts of several relations.

    Args:
        tokenizer: of the model.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        relations: names in `RELATIONS`; None takes all.

    Raises:
        UserError: an unknown relation, or too few different pairs exist.
    """
    unknown = [name for name in relations or () if name not in RELATIONS]
    if unknown:
        raise UserError(f"task factual: there is no relation '{unknown[0]}'; choose from {', '.join(RELATIONS)}")
    chosen = {name: RELATIONS[name] for name in relations or RELATIONS}
    return lookup("factual", chosen, tokenizer, (n_train, n_val, n_test), seed)


def antonym(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Pairs:
    """Opposites: "The opposite of hot is" -> " cold"; arguments and errors as for `factual`."""
    return lookup("antonym", {"antonym": ANTONYMS}, tokenizer, (n_train, n_val, n_test), seed)


def past_tense(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Pairs:
    """Past tenses: "Today they go. Yesterday they" -> " went"; arguments and errors as for `factual`."""
    return lookup("past_tense", {"past_tense": PAST_TENSE}, tokenizer, (n_train, n_val, n_test), seed)


def two_hop(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Pairs:
    """From a city over its country to the capital, language or currency; arguments and errors as for `factual`."""
    return lookup("two_hop", two_hops(), tokenizer, (n_train, n_val, n_test), seed)


def two_hops() -> dict[str, Relation]:
    """Composed relations: city -> country -> capital, language, currency; a city that is the capital is left out."""
    countries = dict(RELATIONS["country"].items())
    sentences = {
        "capital": (
            "The <capital> of the country in which {subject} lies is",
            "From {subject} to the country's <capital>,",
        ),
        "language": (
            "In the city of {subject}, people speak the <language>",
            "The <language> that is heard in {subject} is",
        ),
        "currency": (
            "In the city of {subject}, people pay in the <currency>",
            "The <currency> that is used in {subject} is the",
        ),
    }
    last = {
        "capital": "Whoever rules over {subject} does so from the <capital>,",
        "language": "Children who grow up in {subject} learn to <speak>",
        "currency": "Rents in {subject} are <paid> in",
    }
    made = {}
    for name, both in sentences.items():
        second = dict(RELATIONS[name].items())
        facts = [(city, second[country]) for city, country in countries.items() if country in second]
        text = "; ".join(f"{city}={thing}" for city, thing in facts if city != thing)
        made[f"two_hop_{name}"] = Relation((*both, last[name]), text, countries)
    return made


def lookup(
    task: str,
    relations: Mapping[str, Relation],
    tokenizer: PreTrainedTokenizerBase,
    counts: tuple[int, int, int],
    seed: int,
) -> Pairs:
    """Pairs of some relations, which take turns; the third sentence of each is for the test split.

    Subjects are dealt in turn: of every five, two are for training, one for validation, two for the test.
    """
    subjects = dict.fromkeys(subject for relation in relations.values() for subject, _ in relation.items())
    dealt = zip(("train", "val", "test"), hands(list(subjects), (2, 1, 2)), ((0, 1), (0, 1), (2,)), strict=True)
    tables = {
        split: {
            f"{name}/{number}": table
            for name, relation in relations.items()
            for number in sentences
            if len((table := _Table(relation, number, own, tokenizer)).partners) >= LEAST
        }
        for split, own, sentences in dealt
    }
    if not all(tables.values()):
        raise UserError(f"task {task}: no relation has {LEAST} facts of equal token counts; take another model")

    def make(split: str, key: str, rng: random.Random) -> Pair | None:
        return tables[split][key].draw(rng, key)

    def capacity(split: str) -> int:
        return 2 * sum(len(table.partners) for table in tables[split].values())  # all may be drawn: they are few

    recipe = Recipe(task, ROLES, {split: list(own) for split, own in tables.items()}, make, capacity, by_item=True)
    return draw_splits(recipe, counts, seed)


def prompt_of(sentence: str, subject: str) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """A sentence about a subject, and where subject and relation stand in it."""
    named = _NAMED.search(sentence)
    words = {"subject": subject} | ({"relation": named[1]} if named else {})
    return fill(_NAMED.sub("{relation}", sentence), words)


class _Table:
    """One sentence of a relation, with those of a split's facts that can stand in for each other."""

    def __init__(
        self, relation: Relation, number: int, subjects: Collection[str], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.bridges = relation.bridges
        self.things = {subject: thing for subject, thing in relation.items() if subject in subjects}
        self.prompts = {subject: prompt_of(relation.sentences[number], subject) for subject in self.things}
        texts = [text for text, _ in self.prompts.values()]
        lengths = dict(zip(self.things, map(len, _ids(texts, tokenizer)), strict=True))
        firsts = {thing: first[0] for thing, first in zip(self.things.values(), self._answers(tokenizer), strict=True)}
        self.partners = {
            subject: [
                other
                for other, others in self.things.items()
                if lengths[other] == lengths[subject] and firsts[others] != firsts[thing]
            ]
            for subject, thing in self.things.items()
        }
        self.partners = {subject: others for subject, others in self.partners.items() if others}

    def _answers(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        return _ids([f" {thing}" for thing in self.things.values()], tokenizer)

    def draw(self, rng: random.Random, key: str) -> Pair:
        subject = rng.choice(list(self.partners))
        other = rng.choice(self.partners[subject])
        (clean, spans), (corrupted, _) = self.prompts[subject], self.prompts[other]
        thing, wrong = (f" {self.things[name]}" for name in (subject, other))
        fact = f"{key.split('/')[0]}/{subject}"
        bridge = (f" {self.bridges[subject]}", f" {self.bridges[other]}") if self.bridges else None
        return Pair(clean, corrupted, thing, wrong, spans, group=fact, template=key, bridge=bridge)


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
