"""Nested expressions of and, or, not: "( True and not False ) or False" -> "True".

A corrupted prompt is an expression of the same shape and as many tokens in which the fewest literals are turned that
turn the value.

Source: expressions and the two prompts follow Edge Pruning (arXiv 2406.16778) section 5; the wording is our own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.chat import chat_frame
from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import count_tokens, follows

ROLES = (OTHER, "bracket", "operator", "literal", END)
PROMPTS = ("instruction", "few_shot")
LITERALS = (3, 6)  # in an expression, least and most
MAX_DEPTH = 3  # operators above a literal
INSTRUCTION = "Work out the value of this Boolean expression. Say only True or False."
SHOTS = (
    "( True or False ) and False is False\nnot ( True and False ) is True\nFalse or ( not False and True ) is True\n"
)
VALUES = ("True", "False")

Tree = str | tuple[Any, ...]  # a literal's slot "x0", ("not", tree), or ("and" | "or", left, right)


def boolean(
    tokenizer: PreTrainedTokenizerBase,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int,
    prompt: str = "instruction",
    literals: Sequence[int] = LITERALS,
    chat: bool = True,
) -> Pairs:
    """Pairs of random expressions, half of them true.

    No clean expression of the test split occurs in another split, not even of another prompt, seed or number of pairs.

    Args:
        tokenizer: the model's.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.
        prompt: "instruction", "few_shot" (three worked expressions before) or "both" (they take turns).
        literals: least and most literals of an expression, between 1 and 8.
        chat: True puts the instruction into the tokenizer's chat template, where it has one.

    Raises:
        UserError: `prompt` is neither, `literals` is no range, the values are not single tokens, or too few different
            pairs exist.
    """
    least, most = literals
    if not 1 <= least <= most <= 2**MAX_DEPTH:
        raise UserError(
            f"task boolean: literals={list(literals)} is not a least and a most number from 1 to {2**MAX_DEPTH}"
        )
    if prompt not in (*PROMPTS, "both"):
        raise UserError(f"task boolean: prompt={prompt} is neither {', '.join(PROMPTS)} nor both; choose one")
    frames = {name: _frame(tokenizer, name, chat) for name in (PROMPTS if prompt == "both" else (prompt,))}

    def make(split: str, key: str, rng: random.Random) -> Pair | None:
        name, count, value = key.split("/")
        before, after, lead = frames[name]
        slots = [f"x{number}" for number in range(int(count))]
        tree = _tree(slots, MAX_DEPTH, rng)
        bits = {slot: rng.random() < 0.5 for slot in slots}
        if str(evaluate(tree, bits)) != value:
            return None
        clean, corrupted = (text_of(tree, values) for values in (bits, turned(tree, bits, rng)))
        if _split_of(clean) != split or (split != "test" and _split_of(corrupted) == "test"):
            return None
        if count_tokens(before + clean, tokenizer) != count_tokens(before + corrupted, tokenizer):
            return None
        wrong = str(value != "True")
        roles = _roles(clean, len(before))
        prompts = before + clean + after, before + corrupted + after
        return Pair(*prompts, lead + value, lead + wrong, roles, group=clean, template=key)

    kinds = [f"{name}/{count}/{value}" for count in range(least, most + 1) for value in VALUES for name in frames]
    keys = {split: kinds for split in ("train", "val", "test")}
    recipe = Recipe("boolean", ROLES, keys, make, capacity=lambda split: 10**6, by_item=True)
    return replace(draw_splits(recipe, (n_train, n_val, n_test), seed), name=f"boolean_{prompt}")


def _split_of(expression: str) -> str:
    """The split that an expression belongs to, whatever prompt, seed and number of pairs; 3 in 5 are for training."""
    place = hashlib.blake2b(expression.encode(), digest_size=1).digest()[0] % 5
    return ("test", "val", "train", "train", "train")[place]


def _frame(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> tuple[str, str, str]:
    """What stands before and after the expression, and before the value."""
    before, after = (SHOTS, " is") if prompt == "few_shot" else _instruction(tokenizer, chat)
    lead = next((lead for lead in ("", " ") if len(_values(before, after, lead, tokenizer)) == 2), None)
    if lead is None:
        raise UserError("task boolean: True and False are not single tokens after this prompt; take another model")
    return before, after, lead


def _instruction(tokenizer: PreTrainedTokenizerBase, chat: bool) -> tuple[str, str]:
    if chat and tokenizer.chat_template:
        before, after = chat_frame(tokenizer)
        return f"{before}{INSTRUCTION}\n\n", after
    return f"{INSTRUCTION}\n\n", "\nValue:"


def _values(before: str, after: str, lead: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return follows(f"{before}True and False{after}", [lead + value for value in VALUES], tokenizer)


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
