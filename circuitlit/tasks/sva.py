"""Subject-verb agreement across an attractor: "The keys near the cabinet usually" -> a verb in the plural.

A corrupted prompt has the subject in the other number; the attractor, a noun in between of either number, stays.

Source: the task is that of Marvin and Linzen 2018, "Targeted syntactic evaluation of language models"; summed
probabilities of verbs are the metric of Newman et al. 2021, "Refining targeted syntactic evaluation", section 3.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Splits
from circuitlit.tasks.words import fill, usable_pairs

ROLES = (OTHER, "subject", "attractor", END)

SENTENCES = {
    "seems": "It seems that the {subject} in front of the {attractor}",
    "usually": "The {subject} near the {attractor} usually",
    "always": "The {subject} next to the {attractor} always",
    "see": "We can see that the {subject} behind the {attractor}",
    "beside": "We can see that the {subject} beside the {attractor}",
    "why": "Nobody knows why the {subject} near the {attractor}",
    "noticed": "I noticed that the {subject} next to the {attractor}",
    "in_front": "The {subject} in front of the {attractor} always",
    "close_to": "The {subject} close to the {attractor} usually",
}
HELD_OUT = ("in_front", "close_to")
# The words that SmolLM2-135M does well with. Things that often begin a longer word (book, river) are left out.
NOUNS = (
    "teacher student doctor farmer writer singer lawyer driver manager officer actor artist brother sister neighbor "
    "girl boy king queen guard friend customer worker soldier player pilot parent leader member owner visitor guest "
    "dog cat bird horse cow"
)
THINGS = (
    "car truck house tree table door window desk chair garden school hotel wall tower bridge station boat train ship "
    "computer machine building museum statue fence bed lamp store farm"
)
VERBS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("does", "do"),
    ("goes", "go"),
    *(
        (f"{verb}s", verb)
        for verb in (
            "look seem make say want need like come take get see know think work live love use give find tell feel "
            "leave mean keep begin help show hear play run move believe bring write sit stand lose meet continue learn "
            "change understand follow stop speak grow open walk win offer remember appear buy serve send build stay "
            "fall sell return explain hope carry break receive agree support eat start turn call ask talk enjoy "
            "provide allow require contain belong"
        ).split()
    ),
)
NUMBERS = ("singular", "plural")


def sva(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Splits:
    """Pairs of all four combinations of subject and attractor number; test sentences occur in no other split.

    Args:
        tokenizer: only nouns and verbs that are single tokens for it in both numbers are used.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.

    Raises:
        UserError: too few words are single tokens, or too few different pairs exist.
    """
    nouns = usable_pairs("sva", "nouns", [(noun, f"{noun}s") for noun in NOUNS.split()], tokenizer, 8)
    things = usable_pairs("sva", "things", [(thing, f"{thing}s") for thing in THINGS.split()], tokenizer, 8)
    verbs = usable_pairs("sva", "verbs", VERBS, tokenizer, 2)
    of_number = [tuple(f" {both[number]}" for both in verbs) for number in (0, 1)]

    def make(key: str, rng: random.Random) -> Pair:
        sentence, number, attractor = key.split("/")
        own = NUMBERS.index(number)
        subject = rng.choice(nouns)
        between = {"attractor": rng.choice(things)[NUMBERS.index(attractor)]}
        clean, spans = fill(SENTENCES[sentence], {"subject": subject[own], **between})
        corrupted, _ = fill(SENTENCES[sentence], {"subject": subject[1 - own], **between})
        right, wrong = of_number[own], of_number[1 - own]
        return Pair(clean, corrupted, right[0], wrong[0], spans, key, right=right, wrong=wrong)

    def capacity(of_split: Sequence[str]) -> int:
        return len(of_split) * len(nouns) * len(things)

    keys = ["/".join(parts) for parts in product(SENTENCES, NUMBERS, NUMBERS)]
    held_out = [key for key in keys if key.split("/")[0] in HELD_OUT]
    rest = [key for key in keys if key not in held_out]
    recipe = Recipe("sva", ROLES, make, capacity)
    return draw_splits(recipe, (rest, rest, held_out), (n_train, n_val, n_test), seed)
