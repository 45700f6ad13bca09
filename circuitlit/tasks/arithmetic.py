"""Arithmetic in words and digits, one operation at a time: "... only the number: 72 - 46 =" -> " 26".

| operation | clean | corrupted |
|---|---|---|
| add, subtract | 72 - 46 | the other operator |
| multiply, divide | 12 * 4 | another first operand |
| composite | (61 - 45) * 5 | another last operand |
| sequence | 4, 8, 16, 32, | one element replaced |
| lcm | LCM(8, 64) after a worked one | another pair |
| linear | y = 5x + 75, then three of its values | another intercept |

Answers may have several tokens, which are teacher-forced. A prompt that is clean in one split is in no other split,
neither clean nor corrupted, nor are its operands (of sums, products and multiples in either order).

Source: operations and corruptions follow Wang et al. 2025 (arXiv 2502.11812) section 4; the wording is our own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import count_tokens, fill, slots_of

ASK = "Work out the result and give only the number: "
TEMPLATES = {
    "add": ASK + "{first} {operator} {second} =",
    "subtract": ASK + "{first} {operator} {second} =",
    "multiply": ASK + "{first} * {second} =",
    "divide": ASK + "{first} / {second} =",
    "composite": ASK + "({first} {operator} {second}) * {third} =",
    "sequence": "Go on with the sequence: {n1}, {n2}, {n3}, {n4},",
    "lcm": "The least common multiple: LCM(4, 6) = 12, LCM({first}, {second}) =",
    "linear": "A line is y = {slope}x + {intercept}. For x = 1, 2, 3, 4 it gives y = {y1}, {y2}, {y3},",
}

Words = dict[str, str]
Range = tuple[int, int]


class _Exercise(NamedTuple):
    """Words in a template's slots, those that the corrupted prompt changes, and the results of both prompts."""

    words: Words
    change: Words
    result: int
    other: int


def arithmetic(
    tokenizer: PreTrainedTokenizerBase,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int,
    operation: str = "add",
    low: int = 1,
    high: int = 100,
) -> Pairs:
    """Pairs of one operation; the splits share no exercise.

    Args:
        tokenizer: decides whether the space before a number belongs to the prompt or to the answer.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        operation: add, subtract, multiply, divide, composite, sequence, lcm or linear.
        low: smallest operand, at least 1.
        high: largest operand; results may be larger (of divide, the divisor and the result are operands).

    Raises:
        UserError: `operation` is unknown, the range is empty, or too few different pairs exist.
    """
    if operation not in DRAWS:
        raise UserError(f"task arithmetic: operation={operation} is not one of {', '.join(DRAWS)}; choose one")
    if not 1 <= low < high:
        raise UserError(f"task arithmetic: low={low} and high={high} are no range of operands; take 1 <= low < high")
    draw, template = DRAWS[operation], TEMPLATES[operation]
    before, after = _gap(tokenizer)

    def make(split: str, key: str, rng: random.Random) -> Pair | None:
        words, change, result, other = draw(rng, (low, high))
        clean, roles = fill(template, words)
        corrupted, _ = fill(template, {**words, **change})
        if result == other or count_tokens(clean, tokenizer) != count_tokens(corrupted, tokenizer):
            return None
        wrong = _different(result, other)
        answer, other = f"{after}{result}", f"{after}{wrong}"
        return Pair(clean + before, corrupted + before, answer, other, roles, group=_item(key, words), template=key)

    roles = (OTHER, *slots_of(template), END)
    size = (high - low + 1) ** (3 if operation == "composite" else 2)
    keys = {split: [operation] for split in ("train", "val", "test")}
    recipe = Recipe(f"arithmetic_{operation}", roles, keys, make, capacity=lambda split: size, by_item=True)
    return draw_splits(recipe, (n_train, n_val, n_test), seed)


def _item(operation: str, words: Words) -> str:
    """An exercise's operands; sorted where their order does not matter."""
    numbers = [text for text in words.values() if text.isdigit()]
    return " ".join(sorted(numbers, key=int) if operation in ("add", "multiply", "lcm") else numbers)


def _gap(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The space before the answer: at the prompt's end where it is a token of its own, else `("", " ")`.

    So the first token to be predicted is always one that holds a digit.
    """
    for before, after in ((" ", ""), ("", " ")):
        prompt = f"and 1 ={before}"
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        texts = [f"{prompt}{after}{number}" for number in (*range(10), 12, 34, 56, 78, 90, 250)]
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if all(row[: len(head)] == head and tokenizer.unk_token_id not in row[len(head) :] for row in rows):
            return before, after
    raise UserError("task arithmetic: the tokenizer has no tokens for numbers; take another model")


def _different(result: int, other: int) -> int:
    """The other result, or the next number where digits do not tell it from the right one (12 and 120)."""
    one, two = str(result), str(other)
    return result + 1 if other < 0 or one.startswith(two) or two.startswith(one) else other


def _texts(**numbers: int | str) -> Words:
    return {slot: str(number) for slot, number in numbers.items()}


def _add(rng: random.Random, limits: Range) -> _Exercise:
    a, b = rng.randint(*limits), rng.randint(*limits)
    return _Exercise(_texts(first=a, operator="+", second=b), _texts(operator="-"), a + b, abs(a - b))


def _subtract(rng: random.Random, limits: Range) -> _Exercise:
    b, a = sorted((rng.randint(*limits), rng.randint(*limits)))
    return _Exercise(_texts(first=a, operator="-", second=b), _texts(operator="+"), a - b, a + b)


def _multiply(rng: random.Random, limits: Range) -> _Exercise:
    a, b, c = (rng.randint(*limits) for _ in range(3))
    return _Exercise(_texts(first=a, second=b), _texts(first=c), a * b, c * b)


def _divide(rng: random.Random, limits: Range) -> _Exercise:
    a, b, c = (rng.randint(*limits) for _ in range(3))
    return _Exercise(_texts(first=a * b, second=b), _texts(first=c * b), a, c)


def _composite(rng: random.Random, limits: Range) -> _Exercise:
    b, a = sorted((rng.randint(*limits), rng.randint(*limits)))
    c, d = rng.randint(*limits), rng.randint(*limits)
    operator, inner = rng.choice((("+", a + b), ("-", a - b)))
    return _Exercise(_texts(first=a, operator=operator, second=b, third=c), _texts(third=d), inner * c, inner * d)


def _sequence(rng: random.Random, limits: Range) -> _Exercise:
    """Sums and doublings alike: n, n + s, n + 2s, ... or n, rn, rrn, ..."""
    start, step = rng.randint(*limits), rng.randint(*limits)
    ratio = rng.randint(2, 5)
    numbers = [start + step * n for n in range(5)] if rng.random() < 0.5 else [start * ratio**n for n in range(5)]
    *shown, result = numbers
    place = rng.randrange(4)
    digits = len(str(shown[place]))
    replaced = rng.randrange(10 ** (digits - 1), 10**digits)
    words = {f"n{number + 1}": str(value) for number, value in enumerate(shown)}
    same = replaced == shown[place]
    return _Exercise(words, {f"n{place + 1}": str(replaced)}, result, result if same else result + 1)


def _lcm(rng: random.Random, limits: Range) -> _Exercise:
    a, b, c, d = (rng.randint(*limits) for _ in range(4))
    return _Exercise(_texts(first=a, second=b), _texts(first=c, second=d), math.lcm(a, b), math.lcm(c, d))


def _linear(rng: random.Random, limits: Range) -> _Exercise:
    slope, intercept, other = (rng.randint(*limits) for _ in range(3))
    values = {f"y{x}": slope * x + intercept for x in (1, 2, 3)}
    words = _texts(slope=slope, intercept=intercept, **values)
    return _Exercise(words, _texts(intercept=other), 4 * slope + intercept, 4 * slope + other)


DRAWS: dict[str, Callable[[random.Random, Range], _Exercise]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "composite": _composite,
    "sequence": _sequence,
    "lcm": _lcm,
    "linear": _linear,
}
