"""Gendered pronoun: "Everyone likes the great singer Anna because" -> " she".

A corrupted prompt has a name of the other gender.

Source: the task is that of Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in
GPT-2 small"; names and wording are our own.
"""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Splits
from circuitlit.tasks.words import deal_sentences, deal_words, fill, usable

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
    "admire": "People admire the {quality} {noun} {name} because",
    "hired": "They hired {name}, a {quality} {noun}, because",
    "stayed": "Though the {quality} {noun} {name} stayed at home,",
    "came_in": "When the {quality} {noun} {name} came in,",
    "family": "The family talks about {name}, the {quality} {noun}, because",
    "waited": "We waited for our {quality} {noun} {name} because",
    "never": "So {name} never was a {quality} {noun}, was",
    "said": "After work {name}, the {quality} {noun}, said that",
    "wants": "If {name} wants to be a {quality} {noun},",
    "as": "As {name} is a {quality} {noun},",
}
# The words and sentences are those that SmolLM2-135M does well with.
GIRLS = (
    "Mary Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Lisa Nancy Betty Sandra Margaret Emily Michelle Amanda "
    "Melissa Rebecca Laura Helen Amy Angela Anna Ruth Rachel Janet Emma Maria Diane Julie Olivia Alice Jane Lucy Kate "
    "Claire Sophie Diana Sharon Kathleen Nicole Joan Lauren Ann Catherine Christine Samantha Deborah Stephanie "
    "Katherine Victoria Martha Andrea Hannah Teresa Sara Judith Julia Marie Caroline Charlotte Sophia Eleanor Clara "
    "Eva Molly Heather Monica Wendy Naomi Esther Anne Karen Carol Dorothy Louise Harriet Bella Jenny Sally Katie "
    "Amelia Patricia Nina Ellen Helena Miranda Jill Vera Judy Allison Alison Annie Beth"
)
BOYS = (
    "John James David Joseph Thomas Charles Christopher Matthew Mark Paul Andrew Joshua Kevin Brian George Jason "
    "Jacob Eric Jonathan Stephen Larry Scott Benjamin Gregory Frank Jack Dennis Aaron Adam Nathan Henry Peter Luke "
    "Oliver Martin Carl Tom Bob Jeffrey Ryan Justin Samuel Alexander Jerry Tyler Oscar Victor Tim Ben Sam Dan Mike "
    "Joe Steve Alex Chris Tony Greg Fred Harry Robert Michael William Richard Daniel Anthony Donald Steven Kenneth "
    "Edward Ronald Timothy Nicholas Gary Patrick Raymond Douglas Walter Arthur Ralph Roy Eugene Philip Louis Bobby "
    "Johnny Albert Alan Vincent Ernest Ethan Noah Sean Keith Roger Gerald Lawrence Jesse Bryan Joel Craig Neil Simon "
    "Stuart Hugh Ian Colin Leonard Norman Stanley Frederick Felix Hugo Ivan Marcus Lucas Isaac Theodore Adrian Julian "
    "Ted Ron Jim Jimmy Jeff Matt Phil Todd Tommy Alfred Barry Bernard Carlos Doug Duncan Edgar Edmund Edwin Geoffrey "
    "Gilbert Harold Harvey Jake Jeremy Jon Karl Malcolm Maurice Nathaniel Owen Pedro Sebastian"
)
QUALITIES = (
    "good great nice kind funny clever strong brave calm quiet young famous loyal friendly old tall rich poor smart "
    "wise honest gentle polite cheerful happy lucky busy careful patient talented skilled gifted brilliant popular "
    "lovely charming sweet serious shy modest humble generous tough bold fearless energetic creative curious reliable "
    "devoted faithful sensible lazy strict decent noble amazing wonderful excellent local retired new successful "
    "respected beloved ambitious independent confident passionate outstanding remarkable legendary promising veteran"
)
NOUNS = (
    "friend cook student teacher writer singer dancer doctor lawyer person player runner driver painter neighbor "
    "actor artist author baker builder coach critic designer director editor engineer farmer guide guard judge leader "
    "manager musician officer pilot poet professor reporter scholar scientist speaker trainer worker captain citizen "
    "client colleague customer composer consultant dentist hunter inventor journalist member partner performer "
    "philosopher photographer physicist politician producer programmer reader researcher soldier surgeon tailor "
    "veteran volunteer activist analyst architect assistant athlete candidate chef chemist collector biologist "
    "historian instructor sailor"
)
PRONOUNS = {"girls": " she", "boys": " he"}


def gender_pronoun(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, n_new_words: int = 0
) -> Splits:
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
    return draw_splits(recipe, (n_train, n_val, n_test, n_new_words), seed)
