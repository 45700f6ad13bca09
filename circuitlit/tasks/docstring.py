"""Docstring: the argument that a Python function's documentation has to name next.

    def load(self, table, point, river, honey):
        '''short note

        :param table: small idea
        :param point: green door
        :param

is followed by " river". A corrupted prompt has other arguments, in the signature and in the documentation.

Source: the task is that of Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only
transformer"; words and layout are our own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.draw import Recipe, draw_splits
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, Pairs
from circuitlit.tasks.words import fill, usable

# "a".."d" are the arguments of the signature, "c" the answer; "doc_a" and "doc_b" are the documented ones.
ROLES = (OTHER, "a", "b", "c", "d", "doc_a", "doc_b", END)

LAYOUTS = {
    "sphinx": (
        'def {name}(self, {a}, {b}, {c}, {d}):\n    """{w1} {w2}\n\n    :param {doc_a}: {w3} {w4}\n'
        "    :param {doc_b}: {w5} {w6}\n    :param"
    ),
    "at": (
        'def {name}(self, {a}, {b}, {c}, {d}):\n    """{w1} {w2}\n\n    @param {doc_a}: {w3} {w4}\n'
        "    @param {doc_b}: {w5} {w6}\n    @param"
    ),
}
HELD_OUT = ("at",)
ARGUMENTS = (
    "table point river name file size path text image color state index value level group order class title label user "
    "node edge line page word count total weight height width depth speed angle scale limit range start target "
    "source model data time date year month week price cost rate score rank type kind form shape space field record"
)
NAMES = "load save make find show read write open close run start stop send move add get set call build print"
WORDS = (
    "small large old new green blue red long short early late hard soft idea door hand street window story music "
    "winter summer morning paper letter market garden kitchen country village water fire stone glass"
)


def docstring(tokenizer: PreTrainedTokenizerBase, n_train: int, n_val: int, n_test: int, seed: int) -> Pairs:
    """Pairs of random arguments, which no two splits share; the layout of the test split occurs in no other split.

    Args:
        tokenizer: only words that are single tokens for it are used.
        n_train: pairs to learn from.
        n_val: pairs to choose by.
        n_test: pairs to report on.
        seed: equal seeds give equal pairs.

    Raises:
        UserError: too few words are single tokens, or too few different pairs exist.
    """
    arguments = list(dict.fromkeys(usable("docstring", "arguments", ARGUMENTS.split(), tokenizer, 12)))
    names = usable("docstring", "function names", NAMES.split(), tokenizer, 4)
    rest = [key for key in LAYOUTS if key not in HELD_OUT]
    keys = {"train": rest, "val": rest, "test": HELD_OUT}
    words = usable("docstring", "words", WORDS.split(), tokenizer, 8)

    def make(split: str, key: str, rng: random.Random) -> Pair:
        *own, e, f, g, h = rng.sample(arguments, 8)
        fixed = {"name": rng.choice(names)} | {f"w{n}": word for n, word in enumerate(rng.sample(words, 6), start=1)}
        clean, spans = fill(LAYOUTS[key], fixed | _signature(own))
        corrupted, _ = fill(LAYOUTS[key], fixed | _signature([e, f, g, h]))
        roles = tuple(span for span in spans if span[0] in ROLES)
        return Pair(clean, corrupted, f" {own[2]}", f" {own[3]}", roles, group=", ".join(own), template=key)

    def capacity(split: str) -> int:
        return len(keys[split]) * len(names) * len(arguments) ** 4

    recipe = Recipe("docstring", ROLES, keys, make, capacity, by_item=True)
    return draw_splits(recipe, (n_train, n_val, n_test), seed)


def _signature(arguments: Sequence[str]) -> dict[str, str]:
    a, b, c, d = arguments
    return {"a": a, "b": b, "c": c, "d": d, "doc_a": a, "doc_b": b}
