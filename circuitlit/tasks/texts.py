"""The texts of pairs as tokens: prompts, and prompts with what follows them; and whether tokens say what texts say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from circuitlit.tasks.pair import Pair
from circuitlit.tasks.tokens import Offsets, part, tokenise, tokenise_lists, tokenise_with_offsets


class Texts(NamedTuple):
    """Tokens of a pair's clean prompt and where they stand, and of its other texts."""

    clean: list[int]
    offsets: Offsets
    corrupted: list[int]
    answered: list[int]  # clean prompt and answer, tokenised as one text
    contrasted: list[int]  # clean prompt and wrong answer
    chosen: list[list[int]]  # clean prompt and each right, then each wrong continuation


def tokenised(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, front: list[int]) -> list[Texts]:
    """The texts of some pairs as tokens; prompts as they are alone."""
    prompts = tokenise_with_offsets([pair.clean for pair in pairs], tokenizer, front)
    corrupted = tokenise([corrupted_of(pair) for pair in pairs], tokenizer, front)
    before = ["" if pair.in_place else pair.clean for pair in pairs]
    answered = tokenise([b + pair.answer for b, pair in zip(before, pairs, strict=True)], tokenizer, front)
    others = [pair.wrong_answer or pair.answer for pair in pairs]
    contrasted = tokenise([b + other for b, other in zip(before, others, strict=True)], tokenizer, front)
    chosen = tokenise_lists(
        [[pair.clean + text for text in (*pair.right, *pair.wrong)] for pair in pairs], tokenizer, front
    )
    columns = zip(prompts, corrupted, answered, contrasted, chosen, strict=True)
    return [Texts(clean, offsets, b, c, d, e) for (clean, offsets), b, c, d, e in columns]


def is_parted(texts: Texts) -> bool:
    """Whether what follows the prompt leaves its tokens as they are."""
    start = len(texts.clean)
    following = (texts.answered, texts.contrasted, *texts.chosen)
    return all(len(whole) > start and whole[:start] == texts.clean for whole in following)


def parted(pair: Pair, tokenizer: PreTrainedTokenizerBase, front: list[int]) -> Texts:
    """Tokens of a pair whose prompt has others at its end when something follows."""
    texts = {"answer": pair.answer, "wrong answer": pair.wrong_answer or pair.answer}
    texts |= {f"continuation {number}": text for number, text in enumerate((*pair.right, *pair.wrong), 1)}
    clean, offsets, after = part(pair.clean, texts, tokenizer, front)
    corrupted, _, _ = part(corrupted_of(pair), texts, tokenizer, front)
    answered, contrasted, *chosen = ([*clean, *tokens] for tokens in after)
    return Texts(clean, offsets, corrupted, answered, contrasted, chosen)


def corrupted_of(pair: Pair) -> str:
    """The corrupted prompt; the clean one stands in where there is none, so that rows have one form."""
    return pair.clean if pair.corrupted is None else pair.corrupted


def misread(
    pairs: Sequence[Pair], tokenised: Sequence[Texts], tokenizer: PreTrainedTokenizerBase, front: list[int]
) -> dict[int, str]:
    """What is wrong with those pairs, by their place, whose tokens do not give their texts back, white space aside.

    A tokenizer that does not know a word, or that changes letters, has the model read something else than what is said.
    """
    before = ["" if pair.in_place else pair.clean for pair in pairs]
    columns = [
        ([pair.clean for pair in pairs], [texts.clean for texts in tokenised]),
        ([corrupted_of(pair) for pair in pairs], [texts.corrupted for texts in tokenised]),
        ([b + pair.answer for b, pair in zip(before, pairs, strict=True)], [texts.answered for texts in tokenised]),
        (
            [b + (pair.wrong_answer or pair.answer) for b, pair in zip(before, pairs, strict=True)],
            [texts.contrasted for texts in tokenised],
        ),
    ]
    backend: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    found: dict[int, str] = {}
    led = "".join(backend.decode(front, skip_special_tokens=False).split())
    for texts, rows in columns:
        decoded = backend.decode_batch([row[len(front) :] for row in rows], skip_special_tokens=False)
        for place, (text, said) in enumerate(zip(texts, decoded, strict=True)):
            there, meant = "".join(said.split()), "".join(text.split())
            if there != meant and led + there != meant:
                at = next((n for n, (a, b) in enumerate(zip(there, meant, strict=False)) if a != b), 0)
                asked, got = (whole[max(0, at - 8) : at + 12] for whole in (meant, there))
                found.setdefault(
                    place,
                    f"the tokenizer makes {got!r} of {asked!r}, so a part is unknown to it or changed; write it with "
                    "words that it knows, or drop the pair",
                )
    return found
