"""Pairs of a user's own, one JSON object a line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import END, OTHER, SPLITS, Splits

FIELDS = ("clean", "corrupted", "answer", "wrong_answer", "split", "roles", "group")
NAMES = {**{name: name for name in SPLITS}, "validation": "val"}
OPEN, CLOSE = "<predict>", "</predict>"


def jsonl(
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    seed: int,
    val_fraction: float = 0.2,
    test_fraction: float = 0.4,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Splits:
    """The pairs of a file.

    A line has `clean`, `corrupted` and `answer`, and may have `wrong_answer`, `split` ("train", "val", "validation",
    "test", "new_words") and `roles`: role -> [start, end] characters of `clean`, or role -> a text whose first
    occurrence is meant. `group` names the sentence or item that a line shares with others: intervals for new sentences
    resample groups, and lines without `split` go to one split with their group. Without it a line is its own group.
    Without `answer`, `clean` and `corrupted` each hold `<predict>...</predict>`: the prompts end before the tag, the
    clean one's is the answer and what follows is left out (the form of Edge Pruning's custom data).

    Args:
        tokenizer: not used; every task takes one.
        path: the file.
        seed: lines without `split` are dealt out by it.
        val_fraction: share of those lines for validation, in [0, 1].
        test_fraction: share of those lines for the test, in [0, 1]; the rest is for training.
        n_train, n_val, n_test: at most so many pairs of each split; None keeps all.

    Raises:
        UserError: the file cannot be read, a line is malformed, or no pair is in the test split.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction > 1:
        raise UserError(
            f"task jsonl: val_fraction={val_fraction} and test_fraction={test_fraction} "
            "are not shares that sum to at most 1; change them"
        )
    made: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    undecided: list[Pair] = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            source = f"{path}:{number}"
            try:
                pair, split = _parse(line, source)
            except UserError as error:
                raise UserError(f"{source}: {error}") from None
            (made[split] if split else undecided).append(pair)
    if not undecided and not any(made.values()):
        raise UserError(f"{path} is empty; write one pair a line")
    _deal_out(undecided, made, seed, val_fraction, test_fraction)
    if not made["test"]:
        raise UserError(f'{path} has no pair for the test; give a line "split": "test" or raise test_fraction')
    roles = (OTHER, *_role_names(made.values()), END)
    splits = Splits("jsonl", made["train"], made["val"], made["test"], roles, new_words=made["new_words"])
    return splits.first(n_train, n_val, n_test)


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


def _lines(path: str) -> list[str]:
    try:
        # Not splitlines(): that also breaks at characters that JSON strings may hold.
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a file with one pair a line: task.build.path=FILE") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as such") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); name a file: task.build.path=FILE") from None


def _parse(line: str, source: str) -> tuple[Pair, str | None]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
        raise UserError(f"not JSON ({reason}); write one object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"a {type(row).__name__} where an object belongs; write one object a line")
    for name in row:
        if name not in FIELDS:
            raise UserError(f"unknown field '{name}'; the fields are {', '.join(FIELDS)}")
    clean, corrupted = _text(row, "clean"), _text(row, "corrupted")
    if OPEN in clean or OPEN in corrupted:
        if "answer" in row:
            raise UserError(f"both 'answer' and {OPEN}; leave one out")
        (clean, answer), (corrupted, _) = _cut(clean, "clean"), _cut(corrupted, "corrupted")
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
        raise UserError(f"{name} is a {type(text).__name__}, not a text; put it in quotes")
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
