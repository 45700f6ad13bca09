"""Gendered pronoun: "Everyone likes the great singer Anna because" -> " she".

A corrupted prompt has a name of the other gender.

Source: the task is that of Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in
GPT-2 small"; names and wording are our own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Splits
from circuitlit.tasks.words import fill, usable

ROLES = (OTHER, "name", "quality", "noun", END)

SENTENCES = {
    "likes": "Everyone likes the {quality} {noun} {name} because",
    "loves": "We all love our {quality} {noun} {name} because",
    "birthdays": "So our {quality} {noun} {name} always remembers birthdays, doesn't",
    "called": "Everyone likes {name}, the {quality} {noun}, because",
    "away": "While the {quality} {noun} {name} was away,",
    "thanked": "They thanked {name}, a {quality} {noun}, because",
    "home": "In the end {name}, the {quality} {noun}, went home because",
    "back_then": "Back then {name} was already a {quality} {noun}, wasn't",
    "always": "So {name} was always a {quality} {noun}, wasn't",
    "left": "After the {quality} {noun} {name} left the house,",
}
HELD_OUT = ("always", "left")
# The words and sentences are those that SmolLM2-135M does well with.
GIRLS = (
    "Mary Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Lisa Nancy Betty Sandra Margaret Emily Michelle Amanda "
    "Melissa Rebecca Laura Helen Amy Angela Anna Ruth Rachel Janet Emma Maria Diane Julie Olivia Alice Jane Lucy Kate "
    "Claire Sophie Diana"
)
BOYS = (
    "John James David Joseph Thomas Charles Christopher Matthew Mark Paul Andrew Joshua Kevin Brian George Jason Jacob "
    "Eric Jonathan Stephen Larry Scott Benjamin Gregory Frank Jack Dennis Aaron Adam Nathan Henry Peter Luke Oliver "
    "Martin Carl Tom Bob"
)
QUALITIES = "good great nice kind funny clever strong brave calm quiet young famous loyal friendly"
NOUNS = "friend cook student teacher writer singer dancer doctor lawyer person player runner driver painter neighbor"
PRONOUNS = {"girls": " she", "boys": " he"}


def gender_pronoun(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Splits:
    """Pairs of several sentences, half of them about girls; those of the test split occur in no other split.

    Args:
        tokenizer: only names, qualities and nouns that are single tokens for it are used.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.

    Raises:
        UserError: too few words are single tokens, or too few different pairs exist.
    """
    usable("gender_pronoun", "pronouns", "he she", tokenizer, 2)
    names = {
        "girls": usable("gender_pronoun", "girls' names", GIRLS, tokenizer, 8),
        "boys": usable("gender_pronoun", "boys' names", BOYS, tokenizer, 8),
    }
    qualities = usable("gender_pronoun", "qualities", QUALITIES, tokenizer, 4)
    nouns = usable("gender_pronoun", "nouns", NOUNS, tokenizer, 4)

    def make(key: str, rng: random.Random) -> Pair:
        sentence, gender = key.split("/")
        other = "boys" if gender == "girls" else "girls"
        rest = {"quality": rng.choice(qualities), "noun": rng.choice(nouns)}
        clean, spans = fill(SENTENCES[sentence], {"name": rng.choice(names[gender]), **rest})
        corrupted, _ = fill(SENTENCES[sentence], {"name": rng.choice(names[other]), **rest})
        return Pair(clean, corrupted, PRONOUNS[gender], PRONOUNS[other], spans, key)

    def capacity(of_split: Sequence[str]) -> int:
        return len(of_split) * min(map(len, names.values())) * len(qualities) * len(nouns)

    recipe = Recipe("gender_pronoun", ROLES, make, capacity)
    keys = [f"{sentence}/{gender}" for sentence in SENTENCES for gender in PRONOUNS]
    held_out = [key for key in keys if key.split("/")[0] in HELD_OUT]
    rest = [key for key in keys if key not in held_out]
    return draw_splits(recipe, (rest, rest, held_out), (n_train, n_val, n_test), seed)
