"""Nested expressions of and, or, not: "( True and not False ) or False" -> "True".

A corrupted prompt is an expression of the same shape and as many tokens in which the fewest literals are turned that
turn the value.

Source: expressions and the two prompts follow Edge Pruning (arXiv 2406.16778) section 5; the wording is our own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Splits
from circuitlit.tasks.words import count_tokens, follows

ROLES = (OTHER, "bracket", "operator", "literal", END)
MAX_LITERALS = 6
MAX_DEPTH = 3  # operators above a literal
INSTRUCTION = "Work out the value of this Boolean expression. Say only True or False."
SHOTS = (
    "( True or False ) and False is False\nnot ( True and False ) is True\nFalse or ( not False and True ) is True\n"
)
LITERALS = ("True", "False")

Tree = str | tuple[Any, ...]  # a literal's slot "x0", ("not", tree), or ("and" | "or", left, right)


def boolean(
    tokenizer: PreTrainedTokenizerBase,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int,
    prompt: str = "instruction",
) -> Splits:
    """Pairs of random expressions, half of them true; no expression of the test split occurs in another split.

    Args:
        tokenizer: gives its chat template, where it has one, to the instruction.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        prompt: "instruction" or "few_shot" (three worked expressions before).

    Raises:
        UserError: `prompt` is neither, the values are not single tokens, or too few different pairs exist.
    """
    before, after = _frame(tokenizer, prompt)
    lead = next((lead for lead in ("", " ") if len(_values(before, after, lead, tokenizer)) == 2), None)
    if lead is None:
        raise UserError("task boolean: True and False are not single tokens after this prompt; take another model")

    def make(key: str, rng: random.Random) -> Pair | None:
        literals, value = key.split("/")
        slots = [f"x{number}" for number in range(int(literals))]
        tree = _tree(slots, MAX_DEPTH, rng)
        bits = {slot: rng.random() < 0.5 for slot in slots}
        if str(evaluate(tree, bits)) != value:
            return None
        clean, corrupted = (text_of(tree, values) for values in (bits, turned(tree, bits, rng)))
        if count_tokens(before + clean, tokenizer) != count_tokens(before + corrupted, tokenizer):
            return None
        wrong = str(value != "True")
        roles = _roles(clean, len(before))
        return Pair(before + clean + after, before + corrupted + after, lead + value, lead + wrong, roles, key)

    keys = [f"{literals}/{value}" for literals in range(3, MAX_LITERALS + 1) for value in LITERALS]
    recipe = Recipe(f"boolean_{prompt}", ROLES, make, capacity=lambda of_split: 10**6)
    return draw_splits(recipe, (keys, keys, keys), (n_train, n_val, n_test), seed)


def _frame(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[str, str]:
    """What stands before and after the expression."""
    if prompt == "few_shot":
        return SHOTS, " is"
    if prompt != "instruction":
        raise UserError(f"task boolean: prompt={prompt} is neither instruction nor few_shot; choose one")
    asked = f"{INSTRUCTION}\n\n<expression>"
    if tokenizer.chat_template:
        message = [{"role": "user", "content": asked}]
        asked = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    else:
        asked += "\nValue:"
    before, _, after = asked.partition("<expression>")
    return before, after


def _values(before: str, after: str, lead: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return follows(f"{before}True and False{after}", [lead + value for value in LITERALS], tokenizer)


def _tree(slots: Sequence[str], depth: int, rng: random.Random, negated: bool = False) -> Tree:
    """A random expression over some literals with at most `depth` operators above each; never "not not"."""
    if not negated and len(slots) <= 2 ** (depth - 1) and depth and rng.random() < 0.3:
        return ("not", _tree(slots, depth - 1, rng, negated=True))
    if len(slots) == 1:
        return slots[0]
    most = 2 ** (depth - 1)
    cut = rng.randint(max(1, len(slots) - most), min(len(slots) - 1, most))
    left, right = (_tree(part, depth - 1, rng) for part in (slots[:cut], slots[cut:]))
    return (rng.choice(("and", "or")), left, right)


def evaluate(tree: Tree, bits: dict[str, bool]) -> bool:
    """The value of an expression."""
    if isinstance(tree, str):
        return bits[tree]
    operator, *parts = tree
    values = [evaluate(part, bits) for part in parts]
    if operator == "not":
        return not values[0]
    return all(values) if operator == "and" else any(values)


def text_of(tree: Tree, bits: dict[str, bool], outermost: bool = True) -> str:
    """An expression in words; every `and` and `or` below the top is in brackets."""
    if isinstance(tree, str):
        return str(bits[tree])
    operator, *parts = tree
    texts = [text_of(part, bits, outermost=False) for part in parts]
    if operator == "not":
        return f"not {texts[0]}"
    joined = f"{texts[0]} {operator} {texts[1]}"
    return joined if outermost else f"( {joined} )"


def turned(tree: Tree, bits: dict[str, bool], rng: random.Random) -> dict[str, bool]:
    """The literals with the fewest of them turned that turn the value.

    There always are some: each literal occurs once, so no expression has the same value for all of them.
    """
    value, slots = evaluate(tree, bits), list(bits)
    rng.shuffle(slots)
    changes = (chosen for count in range(1, len(slots) + 1) for chosen in combinations(slots, count))
    candidates = ({slot: bit ^ (slot in chosen) for slot, bit in bits.items()} for chosen in changes)
    return next(other for other in candidates if evaluate(tree, other) != value)


def _roles(expression: str, start: int) -> tuple[tuple[str, int, int], ...]:
    """Spans of the expression's words, which stand `start` characters into the prompt."""
    kinds = {"(": "bracket", ")": "bracket", "True": "literal", "False": "literal"}
    roles = []
    for word in expression.split(" "):
        roles.append((kinds.get(word, "operator"), start, start + len(word)))
        start += len(word) + 1
    return tuple(roles)
