"""Gendered pronoun: "Everyone likes the great singer Anna because" -> " she".

A corrupted prompt has a name of the other gender.

Source: the task is that of Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in
GPT-2 small"; names and wording are our own.
"""

from __future__ import annotations

import random
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.names import BOYS, GIRLS
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import deal_sentences, deal_words, fill, usable

ROLES = (OTHER, "name", "quality", "noun", END)

SENTENCES = {
    "likes": "Everyone likes the {quality} {noun} {name} because",
    "loves": "We all love our {quality} {noun} {name} because",
    "called": "Everyone likes {name}, the {quality} {noun}, because",
    "waited": "We waited for our {quality} {noun} {name} because",
    "away": "While the {quality} {noun} {name} was away,",
    "thanked": "They thanked {name}, a {quality} {noun}, because",
    "home": "In the end {name}, the {quality} {noun}, went home because",
    "back_then": "Back then {name} was already a {quality} {noun}, wasn't",
    "always": "So {name} was always a {quality} {noun}, wasn't",
    "left": "After the {quality} {noun} {name} left the house,",
    "came_in": "When the {quality} {noun} {name} came in,",
    "hired": "They hired {name}, a {quality} {noun}, because",
    "wants": "If {name} wants to be a {quality} {noun},",
    "trust": "You can trust {name}, the {quality} {noun}, because",
    "invited": "We invited {name}, the {quality} {noun}, because",
    "before": "Before {name} became a {quality} {noun},",
    "soon": "As soon as the {quality} {noun} {name} got home,",
    "asked": "They asked {name}, the {quality} {noun}, whether",
    "promised": "Last night the {quality} {noun} {name} promised that",
    "looks": "So the {quality} {noun} {name} looks like a winner, doesn't",
}
# The words and sentences are those that SmolLM2-135M does well with.
QUALITIES = (
    "good great nice kind funny clever strong brave calm quiet young famous loyal friendly tall rich poor smart wise "
    "gentle polite cheerful happy lucky busy careful patient talented skilled gifted brilliant popular charming sweet "
    "serious shy modest humble generous bold fearless creative curious reliable faithful sensible lazy strict decent "
    "local retired new successful beloved confident passionate remarkable promising"
)
NOUNS = (
    "cook student teacher writer singer dancer doctor lawyer player runner driver painter neighbor actor artist "
    "author baker builder coach critic designer director editor engineer farmer guide guard judge leader manager "
    "musician officer pilot poet professor reporter scholar scientist speaker trainer worker captain citizen client "
    "customer consultant dentist hunter inventor journalist member partner performer philosopher photographer "
    "physicist politician producer programmer reader researcher soldier surgeon tailor veteran volunteer activist "
    "analyst architect athlete chef chemist collector biologist historian instructor"
)
PRONOUNS = {"girls": " she", "boys": " he"}


def gender_pronoun(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, n_new_words: int = 0
) -> Pairs:
    """Pairs of several sentences, half of them about girls; training, validation and test share no sentence.

    Test pairs have the names, qualities and nouns of training; those of validation and of `new_words` are their own.

    Args:
        tokenizer: only names, qualities and nouns that are single tokens for it are used.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        n_new_words: pairs of the test split's sentences with new names, qualities and nouns.

    Raises:
        UserError: too few words are single tokens, or too few different pairs exist.
    """
    usable("gender_pronoun", "pronouns", ["he", "she"], tokenizer, 2)
    girls, boys, qualities, nouns = (
        deal_words("gender_pronoun", kind, words.split(), tokenizer, 2)
        for kind, words in (("girls' names", GIRLS), ("boys' names", BOYS), ("qualities", QUALITIES), ("nouns", NOUNS))
    )
    names = {"girls": girls, "boys": boys}
    keys = deal_sentences(list(SENTENCES), list(PRONOUNS))

    def make(split: str, key: str, rng: random.Random) -> Pair:
        sentence, gender = key.split("/")
        other = "boys" if gender == "girls" else "girls"
        rest = {"quality": rng.choice(qualities[split]), "noun": rng.choice(nouns[split])}
        clean, spans = fill(SENTENCES[sentence], {"name": rng.choice(names[gender][split]), **rest})
        corrupted, _ = fill(SENTENCES[sentence], {"name": rng.choice(names[other][split]), **rest})
        return Pair(clean, corrupted, PRONOUNS[gender], PRONOUNS[other], spans, key)

    def capacity(split: str) -> int:
        fewest = min(len(girls[split]), len(boys[split]))
        return len(keys[split]) * fewest * len(qualities[split]) * len(nouns[split])

    recipe = Recipe("gender_pronoun", ROLES, keys, make, capacity)
    return replace(draw_splits(recipe, (n_train, n_val, n_test, n_new_words), seed), published="two")
