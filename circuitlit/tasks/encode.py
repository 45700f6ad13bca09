"""From pairs of texts to rows of token ids, with every check that position-wise patching needs."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.encoded import EncodedPairs, Row
from circuitlit.tasks.faults import BadRows, Fault
from circuitlit.tasks.pair import LACKING, Pair
from circuitlit.tasks.splits import END
from circuitlit.tasks.texts import Texts, corrupted_of, is_parted, misread, parted, tokenised
from circuitlit.tasks.tokens import Offsets, front_tokens, touched

log = logging.getLogger(__name__)
_CHUNK = 1024  # pairs tokenised at once: tokens with their offsets are many small objects
_MANY = 20_000  # pairs from which on several processes share them


def encode(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, role_names: Sequence[str]) -> EncodedPairs:
    """Tokenise the pairs of one split and check them.

    Tokens that the tokenizer puts in front (BOS) are kept; those it puts at the end (EOS) are left out, because the
    answer follows there.

    Args:
        pairs: all pairs of one split.
        tokenizer: a fast one; only those give character offsets.
        role_names: every role that the pairs name, between "other" and "end".

    Raises:
        BadRows: pairs that are empty, twice there, without a difference, too long, of unequal token counts, that the
            tokenizer cannot give back, that name an unknown role, have a bridge without a subject, or have an answer
            that is not separate from the prompt or from the wrong answer.
    """
    numbers = {name: number for number, name in enumerate(role_names)}
    faults = dict(_faulty_texts(pairs))
    numbered = [(number, pair) for number, pair in enumerate(pairs) if number not in faults]
    work = partial(_rows, numbered, tokenizer, front_tokens(tokenizer), numbers)
    begins = range(0, len(numbered), _CHUNK)
    with _no_collector():
        chunks = _shared_out(work, begins) if len(numbered) >= _MANY else map(work, begins)
        made = [row for chunk in chunks for row in chunk]
    rows = [row for row in made if isinstance(row, Row)]
    if len(rows) < len(pairs):
        found = zip(numbered, made, strict=True)
        faults |= {number: row for (number, _), row in found if isinstance(row, Fault)}
        raise BadRows([faults[number] for number in sorted(faults)], len(pairs))
    _warn_of_words_in_one(pairs)
    return marked([EncodedPairs(rows, tuple(role_names), _groups(pairs))])[0]


def marked(splits: Sequence[EncodedPairs]) -> list[EncodedPairs]:
    """The splits of a task, in which a pair with nothing to compare its answer with knows whether others have that.

    Its metric, which is a difference in the others, is then the same in every batch.
    """
    if not any(row.wrong >= 0 or row.choices for split in splits for row in split.rows):
        return list(splits)
    return [
        replace(
            split, rows=[row if row.wrong >= 0 or row.choices else row._replace(wrong=LACKING) for row in split.rows]
        )
        for split in splits
    ]


def _groups(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """Numbers of what pairs share, in the order of their first pair; a pair that shares nothing has its own."""
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(pair.unit or place, len(numbers)) for place, pair in enumerate(pairs))


def _rows(
    numbered: Sequence[tuple[int, Pair]],
    tokenizer: PreTrainedTokenizerBase,
    front: list[int],
    numbers: dict[str, int],
    begin: int,
) -> list[Row | Fault]:
    """The rows of one chunk of pairs, which begins at place `begin`; in the place of a bad one, what is wrong."""
    chunk = numbered[begin : begin + _CHUNK]
    rows: list[Row | Fault] = []
    some = [pair for _, pair in chunk]
    all_texts = tokenised(some, tokenizer, front)
    other_words = misread(some, all_texts, tokenizer, front)
    for place, ((number, pair), texts) in enumerate(zip(chunk, all_texts, strict=True)):
        try:
            if place in other_words:
                raise UserError(other_words[place])
            if not (pair.in_place or is_parted(texts)):
                texts = parted(pair, tokenizer, front)
            row, _ = _row(pair, texts, numbers), pair.first_hop  # which says what a bridge lacks
            if len(row.clean) > tokenizer.model_max_length:
                raise UserError(f"{len(row.clean)} tokens, the model takes {tokenizer.model_max_length}; shorten it")
        except UserError as error:
            rows.append(Fault(number, _name(number, pair), str(error)))
        else:
            rows.append(row)
    return rows


_work: partial[list[Row | Fault]] | None = None  # what the processes of a pool inherit


def _shared_out(work: partial[list[Row | Fault]], begins: range) -> Iterator[list[Row | Fault]]:
    """The chunks in order, made by as many processes as there are cores; they inherit the pairs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if cores < 2:
        yield from map(work, begins)
        return
    global _work
    _work, known = work, os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process is one thread
    try:
        with multiprocessing.get_context("fork").Pool(min(cores, len(begins))) as pool:
            yield from pool.imap(_inherited, begins)
    finally:
        _work = None
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if known is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = known


def _inherited(begin: int) -> list[Row | Fault]:
    assert _work is not None
    return _work(begin)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without the search for reference cycles: there are none among a hundred thousand rows, which it visits often."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _name(number: int, pair: Pair) -> str:
    origin = pair.source or pair.template
    return f"pair {number} ({origin})" if origin else f"pair {number}"


def _faulty_texts(pairs: Iterable[Pair]) -> Iterator[tuple[int, Fault]]:
    """What is wrong with pairs before any tokenizer has seen them, by their number.

    A pair may be there twice where both are one observation, which their group says.
    """
    first: dict[tuple[str, str | None, str], tuple[str, Pair]] = {}
    for number, pair in enumerate(pairs):
        name = _name(number, pair)
        twin, same = first.setdefault((pair.clean, pair.corrupted, pair.answer), (name, pair))
        if not pair.clean.strip() or not corrupted_of(pair).strip():
            yield number, Fault(number, name, "a prompt is empty; write one or drop the pair")
        elif not pair.answer.strip():
            yield number, Fault(number, name, "the answer is empty; write one or drop the pair")
        elif pair.wrong_answer is not None and not pair.wrong_answer.strip():
            yield number, Fault(number, name, "the wrong answer is empty; write one or leave it out")
        elif pair.clean == pair.corrupted:
            yield number, Fault(number, name, "clean and corrupted prompt are the same; corrupt one or drop the pair")
        elif twin != name and not (pair.group and pair.group == same.group):
            yield number, Fault(number, name, f"the same as {twin}; drop one")


def _warn_of_words_in_one(pairs: Sequence[Pair]) -> None:
    """Say where an answer goes on with the prompt's last word, which is rarely meant: "to" and "Mary" are "toMary"."""
    glued = [
        (number, pair, answer)
        for number, pair in enumerate(pairs)
        for answer in (pair.answer, pair.wrong_answer)
        if answer and not pair.in_place and _has_case(pair.clean[-1]) and _has_case(answer[0])
    ]
    if glued:
        number, pair, answer = glued[0]
        log.warning(
            "%s: %r follows %r without a space, so the token scored is the one inside that word (%d such answers); "
            "begin answers with a space if they are words of their own",
            _name(number, pair),
            answer,
            pair.clean[-10:],
            len(glued),
        )


def _has_case(letter: str) -> bool:
    """Whether a letter is of a script whose words are parted by spaces."""
    return letter.lower() != letter.upper()


def _row(pair: Pair, texts: Texts, numbers: dict[str, int]) -> Row:
    clean, offsets, corrupted, answered, contrasted, chosen = texts
    if len(clean) != len(corrupted):
        raise UserError(
            f"clean has {len(clean)} tokens, corrupted {len(corrupted)}; "
            "patching is position-wise; fix the template or drop the pair"
        )
    if clean == corrupted and pair.corrupted is not None:
        raise UserError("clean and corrupted prompt have the same tokens; corrupt one or drop the pair")
    answer = _answer("answer", pair, clean, answered)
    contrast, wrong = 0, -1
    if pair.wrong_answer is not None:
        other = _answer("wrong answer", pair, clean, contrasted)
        differing = [i for i, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b]
        if not differing:
            raise UserError(f"answer {pair.answer!r} and wrong answer {pair.wrong_answer!r} do not differ in any token")
        contrast, wrong = differing[0], other[differing[0]]
    choices = _choices(pair, clean, chosen)
    forced = [] if pair.in_place else answer[:-1]
    return Row(
        clean=(*clean, *forced),
        corrupted=(*corrupted, *forced),
        answer=tuple(answer),
        end=len(clean) - (len(answer) if pair.in_place else 1),
        contrast=contrast,
        wrong=wrong,
        roles=(*_roles(pair, offsets, numbers), *[0] * len(forced)),
        choices=tuple(choices),
        signs=(*[1] * len(pair.right), *[-1] * len(pair.wrong)),
    )


def _choices(pair: Pair, clean: list[int], texts: Sequence[list[int]]) -> list[int]:
    """Tokens of a pair's right and wrong continuations."""
    if bool(pair.right) != bool(pair.wrong):
        raise UserError("right and wrong continuations belong together; name both or neither")
    tokens = []
    for text, whole in zip((*pair.right, *pair.wrong), texts, strict=True):
        row = whole[len(clean) :]
        if len(row) > 1:
            raise UserError(f"continuation {text!r} is {len(row)} tokens; only single tokens can be summed")
        tokens.append(row[0])
    if len(set(tokens)) < len(tokens):
        raise UserError("a token is twice among the right and wrong continuations; drop one")
    return tokens


def _answer(what: str, pair: Pair, clean: list[int], tokens: list[int]) -> list[int]:
    if not pair.in_place:
        return tokens[len(clean) :]
    if len(tokens) > len(clean):
        raise UserError(f"{what} has {len(tokens)} tokens, the prompt it stands in {len(clean)}; shorten it")
    return tokens


def _roles(pair: Pair, offsets: Offsets, numbers: dict[str, int]) -> list[int]:
    """The last prompt token is "end"; where spans overlap, the first one named has the token."""
    roles = [0] * len(offsets)
    for role, start, end in reversed(pair.roles):
        if role not in numbers:
            raise UserError(f"role '{role}' is not one of {', '.join(numbers)}")
        for position in touched(offsets, start, end):
            roles[position] = numbers[role]
    roles[-1] = numbers[END]
    return roles
