"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any later year of the century.

With tokens for two digits the right answers are the numbers above 32, the wrong ones those up to 32 (strictly greater
is right, so the start year itself is wrong). Where a tokenizer splits digits, the prompt goes on to the start's decade,
"... to the year 173", and the next digit is to be predicted: digits above 2 are right, 0, 1 and 2 are wrong. (If it
stopped at "17", the digit 3 would be neither, because 1735 is later than 1732 and 1730 is not.)
A corrupted prompt starts in the year 01 of the century, or in the year 0 of the decade, after which nearly every
continuation is right. With `both_digits` prompts ask for the decade as often ("... to the year 17": digits above 3 are
right, those below are wrong, 3 is neither), and all corrupted prompts start in the year 01, as published.

`Pairs.panel` has the published question: prompts that stop at the century, and all its hundred years.

Source: task, corruption and metric are those of Hanna et al. 2023, "How does GPT-2 compute greater-than?", section 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import count_tokens, deal, deal_sentences, deal_words, fill, follows

ROLES = (OTHER, "noun", "century", "yy", END)

SENTENCES = {
    "lasted": "The {noun} lasted from the year {century}{yy} to the year {shown}",
    "went_on": "The {noun} went on from the year {century}{yy} to the year {shown}",
    "began": "The {noun} began in the year {century}{yy} and ended in the year {shown}",
    "started": "The {noun} started in the year {century}{yy} and was over in the year {shown}",
    "ran": "As the records show, the {noun} ran from the year {century}{yy} until the year {shown}",
    "continued": "The {noun} continued from the year {century}{yy} to the year {shown}",
    "kept": "The {noun} kept going from the year {century}{yy} until the year {shown}",
    "dragged": "The {noun} dragged on from the year {century}{yy} to the year {shown}",
    "broke_out": "The {noun} came about in the year {century}{yy} and came to an end in the year {shown}",
    "stretched": "The {noun} stretched from the year {century}{yy} to the year {shown}",
    "planned": "The {noun} was planned in the year {century}{yy} and finished in the year {shown}",
    "launched": "The {noun} was launched in the year {century}{yy} and was given up in the year {shown}",
    "place": "We know that the {noun} took place from the year {century}{yy} to the year {shown}",
    "until": "In the year {century}{yy} the {noun} began, and it did not end until the year {shown}",
    "survived": "The {noun} survived from the year {century}{yy} to the year {shown}",
    "letter": "In a letter she wrote that the {noun} went from the year {century}{yy} to the year {shown}",
    "described": "The report describes the {noun} from the year {century}{yy} to the year {shown}",
    "set_out": "The {noun} was first heard of in the year {century}{yy} and ended only in the year {shown}",
    "known": "The {noun} is known to have lasted from the year {century}{yy} to the year {shown}",
    "archives": "The archives mention the {noun} from the year {century}{yy} up to the year {shown}",
}
NOUNS = (
    "war siege reign strike conflict project expedition voyage campaign rebellion famine trial study program contract "
    "alliance crisis debate journey mission movement occupation operation partnership process quest relationship rule "
    "struggle survey tour treaty marriage dispute drought plague peace revolution exile battle riot protest boycott "
    "blockade invasion march patrol search hunt investigation inquiry experiment festival exhibition tournament "
    "league series career friendship romance affair epidemic outbreak depression boom restoration migration "
    "settlement monopoly embargo era dynasty empire regime dictatorship conference persecution rivalry competition "
    "pilgrimage trek exploration storm production scandal controversy"
)
CENTURIES = ("10", "11", "12", "13", "14", "15", "16", "17", "18", "19")
NUMBERS = tuple(f"{number:02d}" for number in range(100))
DIGITS = tuple("0123456789")
FIRST = "01"  # the corrupted start


class _Start(NamedTuple):
    """A start year, the beginning of the end year that the prompt shows, and what may follow."""

    century: str
    yy: str
    corrupted: str  # in place of yy
    shown: str
    right: list[str]
    wrong: list[str]


def greater_than(
    tokenizer: PreTrainedTokenizerBase,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int,
    n_new_words: int = 0,
    both_digits: bool = False,
) -> Pairs:
    """Pairs of several sentences; training, validation and test share none.

    Test pairs have the nouns and centuries of training; those of validation and of `new_words` are their own.
    Continuations that merge with the year's beginning into one token (" 1800" for some tokenizers) are left out.

    Args:
        tokenizer: only nouns that are single tokens for it are used, and only years that it cuts evenly.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        n_new_words: pairs of the test split's sentences with new nouns and centuries.
        both_digits: where the tokenizer splits years into digits, half of the pairs ask for the decade; no change
            elsewhere.

    Raises:
        UserError: the tokenizer has no usable nouns or years, or too few different pairs exist.
    """
    nouns = deal_words("greater_than", "nouns", NOUNS.split(), tokenizer, 4)
    starts = {
        split: [start for century in own for start in _starts(century, tokenizer, both_digits)]
        for split, own in deal(CENTURIES).items()
    }
    fewest = min(map(len, starts.values()))
    if fewest < 20:
        raise UserError(
            f"task greater_than: the tokenizer cuts only {fewest} years of a split into beginning and rest, 20 are "
            "needed; take a model with tokens for digits or for two-digit numbers"
        )
    keys = deal_sentences(list(SENTENCES))

    def make(split: str, key: str, rng: random.Random) -> Pair:
        return _pair(key, rng.choice(nouns[split]), rng.choice(starts[split]), rng)

    def capacity(split: str) -> int:
        return len(keys[split]) * len(nouns[split]) * len(starts[split])

    recipe = Recipe("greater_than", ROLES, keys, make, capacity)
    pairs = draw_splits(recipe, (n_train, n_val, n_test, n_new_words), seed)
    rng, years = random.Random(f"greater_than/years/{seed}"), _years(deal(CENTURIES)["test"], tokenizer)
    panel = [
        _pair(keys["test"][number % len(keys["test"])], rng.choice(nouns["test"]), rng.choice(years), rng)
        for number in range(n_test if years else 0)
    ]
    return replace(pairs, panel=panel, published="years" if panel else "")


def sides(start: str, continuations: Sequence[str]) -> tuple[list[str], list[str]]:
    """Right and wrong continuations: those strictly above the start's own, and all others.

    Args:
        start: the start year's last two digits, or its last one.
        continuations: as many digits each.
    """
    return [n for n in continuations if n > start], [n for n in continuations if n <= start]


def _starts(century: str, tokenizer: PreTrainedTokenizerBase, both_digits: bool) -> list[_Start]:
    """Usable start years of a century: with tokens for two digits all but the first, else decade by decade."""
    lead = f"year {century}"
    whole = follows(lead, NUMBERS, tokenizer)
    made = []
    if len(whole) > len(NUMBERS) // 2:
        made = [_Start(century, yy, FIRST, century, *sides(yy, whole)) for yy in whole if yy > FIRST]
    else:
        for decade in DIGITS:
            if len(follows(lead + decade, DIGITS, tokenizer)) == len(DIGITS):
                first = FIRST if both_digits else decade + DIGITS[0]
                made += [
                    _Start(century, decade + year, first, century + decade, *sides(year, DIGITS))
                    for year in DIGITS[1:-1]
                    if decade + year > first
                ]
                if both_digits:
                    later, earlier = sides(decade, DIGITS)
                    made += [
                        _Start(century, decade + year, FIRST, century, later, earlier[:-1])
                        for year in DIGITS
                        if decade + year > FIRST
                    ]
    return [start for start in _even(made, lead, tokenizer) if start.right and start.wrong]


def _years(centuries: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[_Start]:
    """Start years from 02 to 98 with prompts that stop at the century, and all its years as continuations."""
    found: list[_Start] = []
    for century in centuries:
        starts = [_Start(century, yy, FIRST, century, *sides(yy, NUMBERS)) for yy in NUMBERS[2:-1]]
        found += _even(starts, f"year {century}", tokenizer)
    return found


def _even(starts: Sequence[_Start], lead: str, tokenizer: PreTrainedTokenizerBase) -> list[_Start]:
    """The starts whose corrupted prompts have as many tokens."""
    lengths = {first: count_tokens(lead + first, tokenizer) for first in {start.corrupted for start in starts}}
    return [start for start in starts if count_tokens(lead + start.yy, tokenizer) == lengths[start.corrupted]]


def _pair(key: str, noun: str, year: _Start, rng: random.Random) -> Pair:
    words = {"noun": noun, "century": year.century, "yy": year.yy, "shown": year.shown}
    clean, spans = fill(SENTENCES[key], words)
    corrupted, _ = fill(SENTENCES[key], {**words, "yy": year.corrupted})
    roles = tuple(("century" if slot == "shown" else slot, start, end) for slot, start, end in spans)
    right, wrong = year.right, year.wrong
    return Pair(
        clean, corrupted, rng.choice(right), rng.choice(wrong), roles, key, right=tuple(right), wrong=tuple(wrong)
    )
