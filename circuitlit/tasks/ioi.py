"""Indirect object identification: "Then, Mary and John went to the store. John gave a drink to" -> " Mary".

The wording is our own. A corrupted prompt has three other names in the three name slots, so that nothing in it says
who is to be named, and the same number of tokens.

Source: the task is that of Wang et al. 2022, "Interpretability in the Wild"; the corruption is their ABC.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.names import BOYS, GIRLS
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, SPLITS, Pairs
from circuitlit.tasks.words import deal_sentences, deal_words, fill

# "s1+1" is the token after the subject's first mention, which previous-token heads write to.
ROLES = (OTHER, "io", "s1", "s1+1", "s2", "place", "object", END)

SENTENCES = {
    "went": "Then, {first} and {second} went to the {place}. {s2} gave a {object} to",
    "walked": "After lunch {first} and {second} walked to the {place}. {s2} handed a {object} to",
    "long_day": "After a long day at the {place}, {first} and {second} sat down. {s2} passed a {object} to",
    "working": "While {first} and {second} were working at the {place}, {s2} handed a {object} to",
    "friends": "The friends {first} and {second} found a {object} at the {place}. {s2} gave it to",
    "afternoon": "In the afternoon {first} and {second} had fun at the {place}. {s2} handed a {object} to",
    "birthday": "It was a birthday, so {first} and {second} went to the {place}. {s2} gave a {object} to",
    "morning": "One morning {first} and {second} were waiting at the {place}. {s2} passed a {object} to",
    "inside": "Inside the {place}, {first} and {second} talked for an hour. Then {s2} handed a {object} to",
    "finally": "Finally, {first} and {second} came back from the {place}. {s2} gave a {object} to",
    "story": "In the story, {first} and {second} meet at the {place}. {s2} gives a {object} to",
    "two": "There were two people at the {place}, {first} and {second}. {s2} offered a {object} to",
    "dinner": "After dinner at the {place}, {first} and {second} said goodbye. {s2} gave a {object} to",
    "quiet": "The {place} was quiet when {first} and {second} came in. {s2} passed a {object} to",
    "break": "During the break at the {place}, {first} and {second} laughed. {s2} tossed a {object} to",
    "became": "At the {place}, {first} and {second} became friends. Later {s2} sent a {object} to",
    "drove": "Yesterday {first} and {second} drove to the {place}. There {s2} lent a {object} to",
    "argument": "Following an argument at the {place}, {first} and {second} made peace. {s2} gave a {object} to",
    "together": "Together, {first} and {second} cleaned the {place}. Afterwards {s2} handed a {object} to",
    "rain": "Because of the rain, {first} and {second} stayed at the {place}. {s2} gave a {object} to",
    "holiday": "On the first day of the holiday, {first} and {second} went to the {place}. {s2} gave a {object} to",
    "outside": "For an hour {first} and {second} stood outside the {place}. Then {s2} passed a {object} to",
    "door": "At the door of the {place}, {first} and {second} shook hands. {s2} handed a {object} to",
    "new": "Since {first} and {second} were new at the {place}, {s2} offered a {object} to",
    "guests": "The guests {first} and {second} arrived late at the {place}. {s2} handed a {object} to",
    "before": "Before {first} and {second} left the {place}, {s2} handed a {object} to",
    "once": "Once {first} and {second} were inside the {place}, {s2} gave a {object} to",
    "bench": "On a bench near the {place}, {first} and {second} ate lunch. {s2} passed a {object} to",
    "surprise": "To their surprise, {first} and {second} saw each other at the {place}. {s2} offered a {object} to",
    "neighbors": "As neighbors, {first} and {second} often go to the {place}. Today {s2} lent a {object} to",
}
ORDERS = {"ABBA": ("io", "s1"), "BABA": ("s1", "io")}
SINGLE = "went/ABBA"
# What the giver does first in the hard variant: a name that is said over and over is what models err to.
DISTRACTORS = (
    "{s2} smiled, {s2} said that {s2} was happy, and {s2}",
    "{s2} said that {s2} was tired, that {s2} was hungry and that {s2} was bored, and {s2}",
    "{s2} laughed, {s2} sang, {s2} danced and {s2}",
)

# The words that SmolLM2-135M does well with; separated by spaces.
NAMES = f"{BOYS} {GIRLS}"
PLACES = (
    "store school library market hospital garden museum beach theater house airport shop office bank bar kitchen "
    "stadium gym lake river forest factory castle palace temple port harbor bridge pool bakery mall gallery studio "
    "lab university club court pub embassy camp mountain island inn square warehouse garage lobby dock cottage "
    "mansion supermarket academy monument fort cave pond"
)
OBJECTS = (
    "book ring gift cake ball flower card bag camera pen necklace watch snack toy present box map bottle cup note "
    "lamp knife fork plate bowl glass banana cookie coffee pie coat jacket magazine notebook photo painting guitar "
    "laptop tablet hammer towel bell doll balloon puzzle token badge helmet sword diamond lemon pear jar tray beer "
    "receipt diary journal package dress cap uniform"
)


def templates(hard: bool = False) -> dict[str, str]:
    """All sentences in both name orders: `went/ABBA` names the receiver ("io") first, `went/BABA` the giver ("s1").

    Args:
        hard: True lets the giver do other things before, by one of `DISTRACTORS`.
    """
    made = {
        f"{key}/{order}": sentence.replace("{first}", f"{{{first}}}").replace("{second}", f"{{{second}}}")
        for key, sentence in SENTENCES.items()
        for order, (first, second) in ORDERS.items()
    }
    if not hard:
        return made
    turns = {key: DISTRACTORS[place % len(DISTRACTORS)] for place, key in enumerate(SENTENCES)}
    return {key: text.replace("{s2}", turns[key.split("/")[0]]) for key, text in made.items()}


def ioi(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, n_new_words: int = 0
) -> Pairs:
    """Pairs of many sentences; training, validation and test share none, in either name order.

    Test pairs have the names, places and objects of training; those of validation and of `new_words` are their own. All
    but the training pairs stay the same when only `n_train` changes.

    Args:
        tokenizer: only names, places and objects that are single tokens for it are used.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        n_new_words: pairs of the test split's sentences with new names, places and objects.

    Raises:
        UserError: too few words are single tokens, or too few different pairs exist.
    """
    return _splits(
        "ioi", tokenizer, deal_sentences(list(SENTENCES), list(ORDERS)), (n_train, n_val, n_test, n_new_words), seed
    )


def ioi_hard(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, n_new_words: int = 0
) -> Pairs:
    """Pairs of `ioi` in whose sentences the giver is named over and over, so that models err often.

    Arguments and errors are those of `ioi`; its words and sentences are in the same splits.
    """
    keys = deal_sentences(list(SENTENCES), list(ORDERS))
    return _splits("ioi_hard", tokenizer, keys, (n_train, n_val, n_test, n_new_words), seed, hard=True)


def ioi_single(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, n_new_words: int = 0
) -> Pairs:
    """Pairs of the one template `SINGLE`; the splits differ in their names, places and objects only.

    Arguments and errors are those of `ioi`.
    """
    return _splits(
        "ioi_single", tokenizer, {split: [SINGLE] for split in SPLITS}, (n_train, n_val, n_test, n_new_words), seed
    )


def _splits(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    keys: dict[str, list[str]],
    counts: Sequence[int],
    seed: int,
    hard: bool = False,
) -> Pairs:
    texts = templates(hard)
    names, places, objects = (
        deal_words("ioi", kind, words.split(), tokenizer, needed)
        for kind, words, needed in (("names", NAMES, 10), ("places", PLACES, 3), ("objects", OBJECTS, 3))
    )

    def make(split: str, key: str, rng: random.Random) -> Pair:
        five = rng.sample(names[split], 5)
        return _pair(key, texts[key], five, rng.choice(places[split]), rng.choice(objects[split]))

    def capacity(split: str) -> int:
        n_names = len(names[split])
        return len(keys[split]) * n_names * (n_names - 1) * len(places[split]) * len(objects[split])

    return draw_splits(Recipe(name, ROLES, keys, make, capacity), counts, seed)


def _pair(key: str, template: str, names: Sequence[str], place: str, thing: str) -> Pair:
    """`names` are the receiver, the giver and the three of the corrupted prompt."""
    io, subject, *others = names
    clean, spans = fill(template, {"io": io, "s1": subject, "s2": subject, "place": place, "object": thing})
    slots = dict(zip(("io", "s1", "s2"), others, strict=True))
    corrupted, _ = fill(template, {**slots, "place": place, "object": thing})
    after = next(end for slot, _, end in spans if slot == "s1")
    word = re.compile(r"\w+|[^\w\s]").search(clean, after)
    assert word is not None
    roles = (*spans, ("s1+1", word.start(), word.end()))
    return Pair(clean, corrupted, f" {io}", f" {subject}", roles, template=key)
