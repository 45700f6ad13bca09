"""Pairs of a user's own, one JSON object a line."""

from __future__ import annotations

import logging
import random
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.encode import encode
from circuitlit.tasks.faults import BadRows, Fault, by_kind
from circuitlit.tasks.lines import object_of, read_lines
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, SPLITS, Pairs

FIELDS = ("clean", "corrupted", "answer", "wrong_answer", "split", "roles", "group")
NAMES = {**{name: name for name in SPLITS}, "validation": "val"}
DROP = "mend them, or leave them out with task.build.drop_bad=true"
OPEN, CLOSE = "<predict>", "</predict>"

log = logging.getLogger(__name__)
Entry = tuple[Pair, str | None]  # a line's pair and its split


def jsonl(
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    seed: int,
    val_fraction: float = 0.2,
    test_fraction: float = 0.4,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    drop_bad: bool = False,
) -> Pairs:
    """The pairs of a file.

    A line has `clean` and `answer`, and may have `corrupted` (all lines or none: ablation by zeros, means or constants
    does without), `wrong_answer`, `split` ("train", "val", "validation", "test", "new_words") and `roles`: role ->
    [start, end] characters of `clean`, or role -> a text whose first occurrence is meant. `group` names the sentence or
    item that a line shares with others: intervals for new sentences resample groups, and lines without `split` go to
    one split with their group. Without it a line is in the group of the first line with its clean prompt.
    Without `answer`, `clean` and `corrupted` each hold `<predict>...</predict>`: the prompts end before the tag, the
    clean one's is the answer and what follows is left out (the form of Edge Pruning's custom data). Lines that are
    the same are one observation, whatever their groups: they share a group and a split.

    Args:
        tokenizer: the model's; lines that it makes unusable are bad ones, too.
        path: the file.
        seed: lines without `split` are dealt out by it.
        val_fraction: share of those lines for validation, in [0, 1].
        test_fraction: share of those lines for the test, in [0, 1]; the rest is for training.
        n_train, n_val, n_test: at most so many pairs of each split; None keeps all.
        drop_bad: leave out lines that cannot be used, and say how many; otherwise they are refused, all in one message.

    Raises:
        UserError: the file cannot be read, lines cannot be used, or no pair is in the test split.
    """
    _check_fractions("jsonl", val_fraction, test_fraction)
    entries, faults = _parsed(path)
    if not entries and not faults:
        raise UserError(f"{path} is empty; write one pair a line")
    names = (OTHER, *_role_names([[pair for pair, _ in entries]]), END)
    if faults or drop_bad:
        entries = _usable(entries, faults, tokenizer, names, drop_bad)
    return dealt(entries, "jsonl", seed, val_fraction, test_fraction, path).first(n_train, n_val, n_test)


def dealt(
    entries: Sequence[Entry], name: str, seed: int, val_fraction: float, test_fraction: float, source: str = "the list"
) -> Pairs:
    """Pairs with their splits as a task; those without one are dealt out.

    Raises:
        UserError: none is for the test, or the fractions are none.
    """
    _check_fractions(name, val_fraction, test_fraction)
    made: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    undecided: list[Pair] = []
    first: dict[str, str] = {}
    for pair, split in entries:
        if pair.group == pair.source:  # or a prompt that is corrupted in several ways would be in several splits
            pair = replace(pair, group=first.setdefault(pair.clean, pair.group))
        (made[split] if split else undecided).append(pair)
    _deal_out(undecided, made, seed, val_fraction, test_fraction)
    if not made["test"]:
        raise UserError(f'{source} has no pair for the test; give one "split": "test" or raise test_fraction')
    roles = (OTHER, *_role_names(made.values()), END)
    return Pairs(name, made["train"], made["val"], made["test"], roles, new_words=made["new_words"])


def _check_fractions(name: str, val: float, test: float) -> None:
    if not (val >= 0 and test >= 0 and val + test <= 1):
        raise UserError(
            f"task {name}: val_fraction={val} and test_fraction={test} "
            "are not shares that sum to at most 1; change them"
        )


def _parsed(path: str) -> tuple[list[Entry], list[Fault]]:
    """The lines that can be read, and what is wrong with the others."""
    entries: list[Entry] = []
    faults: list[Fault] = []
    first: dict[tuple[str, str | None, str], Entry] = {}
    for number, line in enumerate(read_lines(path, "task.build.path"), start=1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            pair, split = pair_of(object_of(line), source)
            twin, home = first.setdefault((pair.clean, pair.corrupted, pair.answer), (pair, split))
            if split and home and split != home:
                raise UserError(f"the same pair is in {home} ({twin.source}) and in {split}; keep it in one split")
        except UserError as error:
            faults.append(Fault(number, source, str(error)))
        else:
            entries.append((replace(pair, group=twin.group), split))
    return entries, faults


def _usable(
    entries: list[Entry], faults: list[Fault], tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], drop: bool
) -> list[Entry]:
    """The lines that can be used.

    Args:
        entries: lines that could be read.
        faults: what is wrong with lines that could not.
        tokenizer: the model's.
        roles: all names of token roles.
        drop: as `drop_bad` of `jsonl`.

    Raises:
        BadRows: there are others, which are not to be left out, or nothing else.
    """
    total, useless = len(entries) + len(faults), ()
    try:
        encode([pair for pair, _ in entries], tokenizer, roles)
    except BadRows as error:
        useless = error.faults
    every = [*faults, *(fault._replace(place=entries[fault.number][0].source) for fault in useless)]
    if every and (not drop or len(every) == total):
        raise BadRows(every, total, "" if drop else DROP)
    if every:
        log.warning("%d of %d rows are left out: %s", len(every), total, by_kind(every))
    gone = {fault.number for fault in useless}
    return [entry for number, entry in enumerate(entries) if number not in gone]


def _deal_out(
    pairs: list[Pair], made: dict[str, list[Pair]], seed: int, val_fraction: float, test_fraction: float
) -> None:
    """Add pairs without a split where their group is; other groups, at random, to the split that lacks most pairs."""
    home = {pair.group: split for split, own in made.items() for pair in own}
    free: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.group in home:
            made[home[pair.group]].append(pair)
        else:
            free.setdefault(pair.group, []).append(pair)
    groups, count = list(free.values()), sum(map(len, free.values()))
    lacking = {"val": round(val_fraction * count), "test": round(test_fraction * count)}
    lacking["train"] = count - sum(lacking.values())
    random.Random(f"jsonl/{seed}").shuffle(groups)
    for group in groups:
        split = max(lacking, key=lacking.__getitem__)
        made[split] += group
        lacking[split] -= len(group)


def pair_of(row: dict[str, Any], source: str) -> Entry:
    """A pair and its split from a line's object.

    Raises:
        UserError: an unknown, missing or wrong field.
    """
    for name in row:
        if name not in FIELDS:
            raise UserError(f"unknown field '{name}'; the fields are {', '.join(FIELDS)}")
    clean = _text(row, "clean")
    corrupted = _text(row, "corrupted") if row.get("corrupted") is not None else None
    if OPEN in clean or OPEN in (corrupted or ""):
        if "answer" in row:
            raise UserError(f"both 'answer' and {OPEN}; leave one out")
        clean, answer = _cut(clean, "clean")
        corrupted = None if corrupted is None else _cut(corrupted, "corrupted")[0]
    else:
        answer = _text(row, "answer")
    wrong = _text(row, "wrong_answer") if row.get("wrong_answer") is not None else None
    if wrong == answer:
        raise UserError(f"answer and wrong_answer are both {answer!r}; change one")
    group = source if row.get("group") is None else _text(row, "group")
    roles = _roles(row.get("roles"), clean)
    return Pair(clean, corrupted, answer, wrong, roles, group=group, source=source), _split(row)


def _text(row: dict[str, Any], name: str) -> str:
    if name not in row:
        raise UserError(f"field '{name}' is missing; add it")
    text = row[name]
    if not isinstance(text, str):
        raise UserError(f"{name} is {reprlib.repr(text)}, not a text; write one in quotes or leave the row out")
    if not text.strip():
        raise UserError(f"{name} is empty; fill it or drop the line")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{name} holds half a character (a lone surrogate); repair the text")
    return text


def _cut(text: str, name: str) -> tuple[str, str]:
    """Prompt and answer of a text with a tag."""
    prompt, opened, rest = text.partition(OPEN)
    answer, closed, _ = rest.partition(CLOSE)
    if not opened or not closed:
        raise UserError(f"{name} has no {OPEN if not opened else CLOSE}; tag what is to be predicted in both prompts")
    if not prompt.strip():
        raise UserError(f"{name} is empty before {OPEN}; write a prompt or drop the line")
    if not answer.strip():
        raise UserError(f"{name} has nothing between {OPEN} and {CLOSE}; write what is to be predicted")
    return prompt, answer


def _split(row: dict[str, Any]) -> str | None:
    split = row.get("split")
    if split is None:
        return None
    if not isinstance(split, str) or split not in NAMES:
        raise UserError(f"split is {split!r}; it is one of {', '.join(NAMES)}")
    return NAMES[split]


def _roles(roles: object, clean: str) -> tuple[tuple[str, int, int], ...]:
    if roles is None:
        return ()
    if not isinstance(roles, dict):
        raise UserError(f"roles is a {type(roles).__name__}; write an object: role -> [start, end] or a text")
    return tuple((role, *_span(role, place, clean)) for role, place in roles.items())


def _span(role: str, place: object, clean: str) -> tuple[int, int]:
    if role in ("", OTHER, END):
        raise UserError(f"role '{role}' is given to tokens by itself; choose another name")
    if isinstance(place, str):
        start = clean.find(place) if place.strip() else -1
        if start < 0:
            raise UserError(f"role '{role}': {place!r} does not occur in clean; correct it")
        return start, start + len(place)
    if not isinstance(place, list) or len(place) != 2 or any(type(number) is not int for number in place):
        raise UserError(f"role '{role}' is {place!r}; write [start, end] or a text")
    start, end = place
    if not 0 <= start < end <= len(clean):
        raise UserError(f"role '{role}': span {place} is out of range; clean has {len(clean)} characters")
    return start, end


def _role_names(splits: Iterable[list[Pair]]) -> list[str]:
    names = {role for pairs in splits for pair in pairs for role, _, _ in pair.roles}
    return sorted(names)
