"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any later year of the century.

With tokens for two digits the right answers are the numbers above 32, the wrong ones those up to 32 (strictly greater
is right, so the start year itself is wrong). Where a tokenizer splits digits, the decade is to be predicted: digits
above 3 are right, digits below 3 are wrong, and 3 itself is neither, because 1735 is later than 1732 and 1730 is not.
A corrupted prompt starts in the year 01 of the century, after which nearly every continuation is right.

Source: task, corruption and metric are those of Hanna et al. 2023, "How does GPT-2 compute greater-than?", section 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Splits
from circuitlit.tasks.words import count_tokens, fill, follows, usable

ROLES = (OTHER, "noun", "century", "yy", END)

SENTENCES = {
    "lasted": "The {noun} lasted from the year {century}{yy} to the year {century}",
    "went_on": "The {noun} went on from the year {century}{yy} to the year {century}",
    "began": "The {noun} began in the year {century}{yy} and ended in the year {century}",
    "started": "The {noun} started in the year {century}{yy} and was over in the year {century}",
    "ran": "As the records show, the {noun} ran from the year {century}{yy} until the year {century}",
    "continued": "The {noun} continued from the year {century}{yy} to the year {century}",
}
HELD_OUT = ("ran", "continued")
NOUNS = (
    "war siege reign strike conflict project expedition voyage campaign rebellion famine trial study construction "
    "program contract alliance crisis debate journey mission movement occupation operation partnership plan process "
    "quest relationship rule struggle survey tour treaty work marriage dispute drought plague peace revolution exile"
)
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
NUMBERS = tuple(f"{number:02d}" for number in range(100))
DIGITS = tuple("0123456789")
FIRST = "01"  # the corrupted start


def greater_than(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Splits:
    """Pairs of several sentences; those of the test split occur in no other split.

    Continuations that merge with the century into one token (" 1800" for some tokenizers) are left out.

    Args:
        tokenizer: only nouns that are single tokens for it are used, and only years that it cuts evenly.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.

    Raises:
        UserError: the tokenizer has no usable nouns or years, or too few different pairs exist.
    """
    nouns = usable("greater_than", "nouns", NOUNS, tokenizer, 8)
    starts, continuations = _years(tokenizer)
    rest = [key for key in SENTENCES if key not in HELD_OUT]

    def make(key: str, rng: random.Random) -> Pair:
        return _pair(key, rng.choice(nouns), *rng.choice(starts), continuations, rng)

    def capacity(of_split: Sequence[str]) -> int:
        return len(of_split) * len(nouns) * len(starts)

    recipe = Recipe("greater_than", ROLES, make, capacity)
    return draw_splits(recipe, (rest, rest, HELD_OUT), (n_train, n_val, n_test), seed)


def sides(yy: str, continuations: Sequence[str]) -> tuple[list[str], list[str]]:
    """Right and wrong continuations after a start in the year `yy` of a century.

    Args:
        yy: two digits.
        continuations: two-digit numbers, or single digits for the decade.
    """
    if len(continuations[0]) == 1:
        return [d for d in continuations if d > yy[0]], [d for d in continuations if d < yy[0]]
    return [n for n in continuations if n > yy], [n for n in continuations if n <= yy]


def _years(tokenizer: PreTrainedTokenizerBase) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """Start years as (century, yy), and the single-token continuations of each century."""
    starts: list[tuple[str, str]] = []
    continuations: dict[str, list[str]] = {}
    for century in CENTURIES:
        whole, digits = (follows(f"year {century}", texts, tokenizer) for texts in (NUMBERS, DIGITS))
        continuations[century] = whole if len(whole) > len(NUMBERS) // 2 else digits
        if not whole and len(digits) < len(DIGITS):
            continue
        length = count_tokens(f"year {century}{FIRST}", tokenizer)
        for yy in NUMBERS[2:]:
            even = count_tokens(f"year {century}{yy}", tokenizer) == length and (yy in whole or not whole)
            if even and all(sides(yy, continuations[century])):
                starts.append((century, yy))
    if len(starts) < 100:
        raise UserError(
            f"task greater_than: the tokenizer cuts only {len(starts)} years into century and number, 100 are needed; "
            "take a model with tokens for digits or for two-digit numbers"
        )
    return starts, continuations


def _pair(key: str, noun: str, century: str, yy: str, continuations: dict[str, list[str]], rng: random.Random) -> Pair:
    words = {"noun": noun, "century": century, "yy": yy}
    clean, spans = fill(SENTENCES[key], words)
    corrupted, _ = fill(SENTENCES[key], {**words, "yy": FIRST})
    right, wrong = sides(yy, continuations[century])
    return Pair(
        clean, corrupted, rng.choice(right), rng.choice(wrong), spans, key, right=tuple(right), wrong=tuple(wrong)
    )
