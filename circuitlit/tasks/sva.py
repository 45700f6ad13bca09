"""Subject-verb agreement across an attractor: "The keys near the cabinet usually" -> a verb in the plural.

A corrupted prompt has the subject in the other number; the attractor, a noun in between of either number, stays.

Source: the task is that of Marvin and Linzen 2018, "Targeted syntactic evaluation of language models"; summed
probabilities of verbs are the metric of Newman et al. 2021, "Refining targeted syntactic evaluation", section 3.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import deal_sentences, deal_words, fill, usable

ROLES = (OTHER, "subject", "attractor", END)

SENTENCES = {
    "seems": "It seems that the {subject} in front of the {attractor}",
    "usually": "The {subject} near the {attractor} usually",
    "always": "The {subject} next to the {attractor} always",
    "see": "We can see that the {subject} behind the {attractor}",
    "beside": "We can see that the {subject} beside the {attractor}",
    "why": "Nobody knows why the {subject} near the {attractor}",
    "noticed": "I noticed that the {subject} next to the {attractor}",
    "knows": "Everyone knows that the {subject} near the {attractor}",
    "told": "They told us that the {subject} beside the {attractor}",
    "rarely": "The {subject} across from the {attractor} rarely",
    "sometimes": "The {subject} in front of the {attractor} sometimes",
    "anyone": "Anyone can see that the {subject} close to the {attractor}",
    "clear": "It is clear that the {subject} behind the {attractor}",
    "also": "The {subject} behind the {attractor} also",
    "says": "The sign says that the {subject} in front of the {attractor}",
    "appears": "It appears that the {subject} beside the {attractor}",
    "say": "People say that the {subject} in front of the {attractor}",
    "turns_out": "It turns out that the {subject} next to the {attractor}",
    "noted": "They noted that the {subject} behind the {attractor}",
    "proves": "This proves that the {subject} by the {attractor}",
}
# Things that often begin a longer word (book, road) are left out.
NOUNS = (
    "teacher student doctor farmer writer singer lawyer driver manager officer actor artist brother sister neighbor "
    "girl boy king queen guard friend customer worker soldier player pilot parent leader member owner visitor guest "
    "dog cat bird horse cow author editor engineer scientist professor judge captain sailor hunter poet dancer "
    "builder tourist traveler stranger reporter journalist senator politician kid son daughter father mother husband "
    "nurse director designer musician reader scholar trainer runner rider client partner colleague assistant agent "
    "prisoner monk priest knight prince lion tiger bear rabbit monkey elephant snake frog spider bee shark citizen "
    "resident employee employer veteran volunteer winner champion fighter surgeon architect"
)
THINGS = (
    "car truck house tree table door window desk chair garden hotel wall tower bridge station boat train ship "
    "computer machine building museum statue fence bed lamp store farm bike plane tent castle temple office shop bank "
    "market restaurant hospital theater gate cabinet mirror guitar camera screen printer basket bucket barrel bottle "
    "bag lake pond hill mountain stone street forest plant flower monument flag pole tank engine wheel cart rocket "
    "satellite sink curtain painting poster map candle jacket sculpture airport warehouse prison helicopter bicycle "
    "motorcycle platform roof container package"
)
VERBS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("does", "do"),
    ("goes", "go"),
    ("carries", "carry"),
    *(
        (f"{verb}s", verb)
        for verb in (
            "look seem make say want need like come take get see know think work live love use give find tell feel "
            "leave mean keep begin help show hear play run move believe bring write sit stand lose meet continue learn "
            "change understand follow stop speak grow open walk win offer remember appear buy serve send build stay "
            "fall sell return explain hope break receive agree support eat start turn call ask talk enjoy "
            "provide allow require contain belong happen lead hold share explore"
        ).split()
    ),
)
NUMBERS = ("singular", "plural")


def sva(
    tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int, n_new_words: int = 0
) -> Pairs:
    """Pairs of all four combinations of subject and attractor number.

    Training, validation and test share no sentence. Test pairs have the nouns and things of training; those of
    validation and of `new_words` are their own. The verbs, which are what is asked for, are the same in all.

    Args:
        tokenizer: only nouns and verbs that are single tokens for it in both numbers are used.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        n_new_words: pairs of the test split's sentences with new nouns and things.

    Raises:
        UserError: too few words are single tokens, or too few different pairs exist.
    """
    nouns, things = (
        deal_words("sva", kind, [(word, f"{word}s") for word in words.split()], tokenizer, 4)
        for kind, words in (("nouns", NOUNS), ("things", THINGS))
    )
    verbs = usable("sva", "verbs", VERBS, tokenizer, 2)
    of_number = [tuple(f" {both[number]}" for both in verbs) for number in (0, 1)]
    keys = deal_sentences(
        list(SENTENCES), [f"{subject}/{attractor}" for subject, attractor in product(NUMBERS, NUMBERS)]
    )

    def make(split: str, key: str, rng: random.Random) -> Pair:
        sentence, number, attractor = key.split("/")
        own = NUMBERS.index(number)
        subject = rng.choice(nouns[split])
        between = {"attractor": rng.choice(things[split])[NUMBERS.index(attractor)]}
        clean, spans = fill(SENTENCES[sentence], {"subject": subject[own], **between})
        corrupted, _ = fill(SENTENCES[sentence], {"subject": subject[1 - own], **between})
        right, wrong = of_number[own], of_number[1 - own]
        return Pair(clean, corrupted, right[0], wrong[0], spans, key, right=right, wrong=wrong)

    def capacity(split: str) -> int:
        return len(keys[split]) * len(nouns[split]) * len(things[split])

    recipe = Recipe("sva", ROLES, keys, make, capacity)
    return replace(draw_splits(recipe, (n_train, n_val, n_test, n_new_words), seed), published="forms")
