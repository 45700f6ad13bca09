"""Texts to tokens with their places in the text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError

Offsets = list[tuple[int, int]]


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens (BOS) that the tokenizer puts in front of every text.

    Raises:
        UserError: the tokenizer is not a fast one, so that it gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} gives no character offsets; load the model's fast tokenizer")
    whole = tokenizer("a")["input_ids"]
    return whole[: whole.index(tokenizer("a", add_special_tokens=False)["input_ids"][0])]


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, front: list[int]) -> list[list[int]]:
    """Token ids of every text, the `front` tokens included, without any special token at the end.

    A text that itself begins with the `front` tokens (a chat template's output) does not get them twice.
    """
    return [ids if ids[: len(front)] == front else front + ids for ids in (e.ids for e in _encodings(texts, tokenizer))]


def tokenise_lists(
    lists: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, front: list[int]
) -> list[list[list[int]]]:
    """As `tokenise`, for each of several lists of texts, which may be empty."""
    texts = [text for of_list in lists for text in of_list]
    rows = iter(tokenise(texts, tokenizer, front) if texts else [])
    return [[next(rows) for _ in of_list] for of_list in lists]


def tokenise_with_offsets(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, front: list[int]
) -> list[tuple[list[int], Offsets]]:
    """As `tokenise`, with the characters `[start, end)` of every token; `(-1, -1)` for the added `front` tokens."""
    outside = [(-1, -1)] * len(front)
    encoded = ((encoding.ids, encoding.offsets) for encoding in _encodings(texts, tokenizer))
    return [
        (ids, offsets) if ids[: len(front)] == front else (front + ids, outside + offsets) for ids, offsets in encoded
    ]


def _encodings(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Sequence[Encoding]:
    """What the Rust tokenizer makes of each text; the library's wrapper takes longer than that to hand it out."""
    backend: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.no_truncation()
    backend.no_padding()
    return backend.encode_batch(list(texts), add_special_tokens=False)


def part(
    prompt: str, texts: dict[str, str], tokenizer: PreTrainedTokenizerBase, front: list[int]
) -> tuple[list[int], Offsets, list[list[int]]]:
    """Tokens of a prompt, their places, and tokens of what may follow it, as the joined texts have them.

    A token belongs to the prompt if it ends there. White space at the prompt's end goes to the texts where a tokenizer
    puts it into their first token: "gave it to " and "Mary" are parted as "gave it to" and " Mary".

    Args:
        prompt: what the model reads.
        texts: by a name for messages, what it may say next.
        tokenizer: the model's.
        front: as in `tokenise`.

    Raises:
        UserError: a token holds letters of both, or two texts need different tokens of the prompt.
    """
    joined = tokenise_with_offsets([prompt + text for text in texts.values()], tokenizer, front)
    ends = [bisect_right(offsets, len(prompt), key=lambda span: span[1]) for _, offsets in joined]
    border, (shortest, offsets) = min(zip(ends, joined, strict=True), key=lambda one: one[0])
    for (name, text), (ids, places), end in zip(texts.items(), joined, ends, strict=True):
        within = prompt[max(places[end - 1][1], 0) if end else 0 :].strip()
        if within or end == len(ids) or ids[:border] != shortest[:border]:
            alone, _ = tokenise_with_offsets([prompt], tokenizer, front)[0]
            raise UserError(
                f"the {name} {text!r} merges with the last token of the prompt: alone that ends in the tokens "
                f"{_last(alone, len(alone), tokenizer)}, joined in {_last(ids, end + 1, tokenizer)}; begin the {name} "
                "with a space, or end the prompt elsewhere"
            )
    return shortest[:border], offsets[:border], [ids[border:] for ids, _ in joined]


def _last(ids: list[int], end: int, tokenizer: PreTrainedTokenizerBase, count: int = 3) -> list[str]:
    """The last tokens ahead of `end`, as texts."""
    return [str(tokenizer.decode([token])) for token in ids[max(0, end - count) : end]]


def touched(offsets: Offsets, start: int, end: int) -> range:
    """Positions of the tokens that hold a character of `[start, end)`."""
    first = bisect_right(offsets, start, key=lambda span: span[1])
    return range(first, bisect_left(offsets, end, key=lambda span: span[0]))


def token_texts(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], before: int | None = None) -> list[str]:
    """What each token adds to the text, its leading space included; a part of a letter as the tokenizer shows it.

    Args:
        tokenizer: None gives the numbers.
        ids: the tokens.
        before: token ahead of the first one, if there is one.
    """
    if tokenizer is None:
        return [str(token) for token in ids]
    texts = []
    for token in ids:
        alone = str(tokenizer.decode([token]))
        ahead = "" if before is None else str(tokenizer.decode([before]))
        both = "" if before is None else str(tokenizer.decode([before, token]))
        texts.append(both[len(ahead) :] if both.startswith(ahead) and len(both) > len(ahead) else alone)
        before = token
    return texts
