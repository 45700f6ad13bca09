"""Inputs of the programs that Tracr compiles: every prompt there is, and what the program says at each of its tokens.

"BOS 1 2 3" -> "3 2 1" (reverse), "BOS x a x c" -> "1 1/2 2/3 1/2" (the share of x so far). A corrupted prompt has
another word in every place.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import Pairs

BOS = "BOS"
PAD = "compiler_pad"
PROGRAMS = {"reverse": (("1", "2", "3"), 3), "proportion": (("a", "b", "c", "x"), 4)}  # words, longest input


def tracr(
    tokenizer: PreTrainedTokenizerBase,
    program: str,
    seed: int,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Pairs:
    """All inputs of a program, in every split.

    Args:
        tokenizer: of the compiled model.
        program: "reverse" or "proportion".
        seed: of the corrupted prompts.
        n_train, n_val, n_test: at most so many inputs in each split; None keeps all.

    Raises:
        UserError: no such program, or the model is not the compiled one.
    """
    if program not in PROGRAMS:
        raise UserError(f"task.build.program={program} is not one of {', '.join(PROGRAMS)}")
    missing = [word for word in (BOS, *PROGRAMS[program][0]) if word not in tokenizer.get_vocab()]
    if missing:
        needed = f"model=tracr_{program}"
        raise UserError(f"task tracr_{program} needs {needed}; this model does not know '{missing[0]}'")
    draw = random.Random(f"{program}/{seed}")
    pairs = [_pair(program, words, draw) for words in inputs(program)]
    return Pairs(f"tracr_{program}", pairs, pairs, pairs, exhaustive=True, overlapping=True).first(
        n_train, n_val, n_test
    )


def inputs(program: str) -> list[tuple[str, ...]]:
    """Every input of a program, of every length, without BOS."""
    words, longest = PROGRAMS[program]
    return [made for length in range(1, longest + 1) for made in itertools.product(words, repeat=length)]


def outputs(program: str, words: Sequence[str]) -> list[str]:
    """What a program says at each word of an input."""
    if program == "reverse":
        return list(reversed(words))
    return [str(Fraction(words[: end + 1].count("x"), end + 1)) for end in range(len(words))]


def _pair(program: str, words: tuple[str, ...], draw: random.Random) -> Pair:
    other = [draw.choice([word for word in PROGRAMS[program][0] if word != own]) for own in words]
    answer = " ".join(outputs(program, words))
    return Pair(
        " ".join((BOS, *words)), " ".join((BOS, *other)), answer, group=" ".join(words), template=program, in_place=True
    )
