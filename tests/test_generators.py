"""Every generator of prompts: what it says is true, its splits are apart, its seeds repeat, `encode` takes it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_tokenizers import wrap
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks import (
    Pair,
    Pairs,
    arithmetic,
    boolean,
    docstring,
    encode,
    gender_pronoun,
    greater_than,
    induction,
    ioi,
    ioi_hard,
    ioi_single,
    sva,
)
from circuitlit.tasks.greater_than import sides
from circuitlit.tasks.names import BOYS, GIRLS
from circuitlit.tasks.sva import NOUNS, VERBS

OPERATIONS = ("add", "subtract", "multiply", "divide", "composite", "sequence", "lcm", "linear")
TASKS: dict[str, Callable[..., Pairs]] = {
    "ioi": ioi,
    "ioi_hard": ioi_hard,
    "ioi_single": ioi_single,
    "greater_than": greater_than,
    "gender_pronoun": gender_pronoun,
    "sva": sva,
    "docstring": docstring,
    "induction": induction,
    **{f"boolean_{prompt}": partial(boolean, prompt=prompt) for prompt in ("instruction", "few_shot")},
    **{f"arithmetic_{name}": partial(arithmetic, operation=name, high=300) for name in OPERATIONS},
}
SMALL, LARGE = (45, 10, 20), (10_000, 100, 200)


def changed(pair: Pair) -> list[tuple[str, str]]:
    """Words of the clean and the corrupted prompt where they differ."""
    both = zip(*(re.split(r"([^\w+-]+)", text) for text in (pair.clean, pair.corrupted)), strict=True)
    return [(a, b) for a, b in both if a != b]


def check_ioi(pair: Pair) -> None:
    """The giver's later names all change to one other."""
    assert len(set(changed(pair))) == 3 and re.findall(r"\w+", pair.clean).count(pair.answer.strip()) == 1


def check_greater_than(pair: Pair) -> None:
    match = re.search(r"(\d\d)(\d\d) .* year (\d+)$", pair.clean)
    assert match
    start, shown = int(match[1] + match[2]), match[3]
    assert shown in (match[1], match[1] + match[2][0])
    assert changed(pair) == [(str(start), shown + "01" if shown == match[1] else shown + "0")]
    for texts, is_right in ((pair.right, True), (pair.wrong, False)):
        for text in texts:
            missing = 4 - len(shown + text)
            years = range(int(shown + text) * 10**missing, (int(shown + text) + 1) * 10**missing)
            assert all((year > start) is is_right for year in years)


def check_gender_pronoun(pair: Pair) -> None:
    ((name, other),) = changed(pair)
    kinds = {" he": BOYS.split(), " she": GIRLS.split()}
    assert name in kinds[pair.answer] and other in kinds[str(pair.wrong_answer)] and pair.answer != pair.wrong_answer


def check_sva(pair: Pair) -> None:
    ((subject, other),) = changed(pair)
    plural = subject.endswith("s")
    assert {subject.removesuffix("s"), other.removesuffix("s")} <= set(NOUNS.split()) and subject != other
    right, wrong = (tuple(f" {both[number]}" for both in VERBS) for number in (plural, not plural))
    known = [right.index(verb) for verb in pair.right]  # those that are single tokens
    assert len(known) > 10 and pair.wrong == tuple(wrong[number] for number in known)


def check_docstring(pair: Pair) -> None:
    own, other = (re.findall(r"\w+", text.split("self")[1].split(")")[0]) for text in (pair.clean, pair.corrupted))
    assert len(own) == 4 and not set(own) & set(other)
    documented = re.findall(r"[:@]param (\w+):", pair.clean)
    assert documented == own[:2] and pair.answer == f" {own[2]}" and pair.wrong_answer == f" {own[3]}"
    assert changed(pair) == list(zip(own + documented, other + other[:2], strict=True))


def check_induction(pair: Pair) -> None:
    words = pair.clean.removeprefix("List: ").split(" ")
    first = words.index(words[-1])
    assert words[first + 1] == pair.answer.strip() != str(pair.wrong_answer).strip()
    ((last, stranger),) = changed(pair)
    assert last == words[-1] and stranger not in words


def check_boolean(pair: Pair) -> None:
    values = []
    for text in (pair.clean, pair.corrupted):
        last = re.search(r"(?:\n\n|False\n.*True\n.*True\n)(.+?)(?: is$|\nValue:|<)", text)
        assert last
        shown = last[1]
        assert 3 <= len(re.findall("True|False", shown)) <= 6 and "not not" not in shown
        assert max(shown[:n].count("(") - shown[:n].count(")") for n in range(len(shown))) <= 3
        values.append(eval(shown, {"__builtins__": {}}))
    assert str(values[0]) == pair.answer.strip() and str(values[1]) == str(pair.wrong_answer).strip()
    assert values[0] is not values[1]
    assert all({a, b} == {"True", "False"} for a, b in changed(pair))


def check_arithmetic(pair: Pair) -> None:
    numbers = [int(n) for n in re.findall(r"\d+", pair.clean)]
    answer, kind, different = int(pair.answer), pair.template, changed(pair)
    if kind == "sequence":
        terms = [*numbers, answer]
        neighbours = list(pairwise(terms))
        assert len({b - a for a, b in neighbours}) == 1 or len({b / a for a, b in neighbours}) == 1
    elif kind == "lcm":
        assert answer == math.lcm(*numbers[-2:])
    elif kind == "linear":
        slope, intercept, *xs_and_ys = numbers
        assert xs_and_ys == [1, 2, 3, 4, *(slope * x + intercept for x in (1, 2, 3))]
        assert answer == 4 * slope + intercept
    else:
        written = pair.clean.split(": ")[1].split("=")[0]
        assert eval(written, {"__builtins__": {}}) == answer
    assert len(different) == 1 or (kind == "lcm" and len(different) == 2)
    if kind in ("add", "subtract"):
        assert set(different[0]) == {"+", "-"}


def checker(name: str) -> Callable[[Pair], None]:
    short = name.split("_")[0] if name.startswith(("boolean", "arithmetic", "ioi")) else name
    return globals()[f"check_{short}"]


def check_task(name: str, tokenizer: PreTrainedTokenizerBase, counts: tuple[int, int, int]) -> None:
    """Everything that holds for all pairs of a task."""
    task, check = TASKS[name], checker(name)
    splits = task(tokenizer, *counts, seed=1)
    assert splits.name == name
    made = [splits.train, splits.val, splits.test]
    assert tuple(map(len, made)) == counts
    clean = [{pair.clean for pair in pairs} for pairs in made]
    assert sum(map(len, clean)) == sum(counts) == len(set.union(*clean))
    for own, pairs in zip(clean, made, strict=True):
        assert not {pair.corrupted for pair in pairs} & (set.union(*clean) - own)
        rows = encode(pairs, tokenizer, splits.role_names).rows
        for pair, row in zip(pairs, rows, strict=True):
            check(pair)
            assert set(row.roles) >= {len(splits.role_names) - 1, 1}
    assert {role for pair in splits.train for role, _, _ in pair.roles} == set(splits.role_names[1:-1])


@pytest.mark.parametrize("name", TASKS)
def test_pairs_are_true_and_apart(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    check_task(name, tokenizer, SMALL)


@pytest.mark.parametrize("name", TASKS)
def test_seeds_repeat(name: str, byte_bpe: PreTrainedTokenizerBase) -> None:
    task = TASKS[name]
    small, large, other = (task(byte_bpe, n, 8, 8, seed) for n, seed in ((16, 1), (24, 1), (16, 2)))
    assert (small.test, small.val, small.train) == (large.test, large.val, large.train[:16])
    assert small.test != other.test and small.train != other.train


@pytest.mark.parametrize("name, digest", [("ioi", "149360d6cd1e73e0"), ("ioi_single", "568c354413f29917")])
def test_pairs_of_a_seed_stay_what_they_were(name: str, digest: str, tokenizer: PreTrainedTokenizerBase) -> None:
    splits = TASKS[name](tokenizer, 100, 20, 40, seed=3, n_new_words=40)
    every = splits.train + splits.val + splits.test + splits.new_words
    text = repr([(pair.clean, pair.corrupted, pair.answer, pair.roles) for pair in every])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_greater_than_is_strict() -> None:
    numbers, digits = [f"{n:02d}" for n in range(100)], list("0123456789")
    right, wrong = sides("32", numbers)
    assert (right[0], wrong[-1], len(right) + len(wrong)) == ("33", "32", 100)
    assert sides("2", digits) == (list("3456789"), list("012"))


@pytest.mark.parametrize("name", TASKS)
def test_a_tokenizer_without_the_words_is_refused(name: str) -> None:
    letters = Tokenizer(models.WordLevel({"<unk>": 0, "and": 1}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    with pytest.raises(UserError, match=f"task {name.split('_')[0]}"):
        TASKS[name](wrap(letters, unk_token="<unk>"), 5, 5, 5, seed=0)


def test_settings_out_of_range_are_refused(byte_bpe: PreTrainedTokenizerBase) -> None:
    for task, settings, words in (
        (boolean, {"prompt": "chat"}, "prompt=chat is neither"),
        (arithmetic, {"operation": "root"}, "operation=root is not one of add, "),
        (arithmetic, {"low": 9, "high": 9}, "no range"),
        (arithmetic, {"operation": "add", "high": 10}, "asked for, 0 to 50 can be made"),
        (induction, {"length": 3}, "length=3 is too short"),
        (induction, {"length": 900}, "lower length"),
    ):
        with pytest.raises(UserError, match=words):
            task(byte_bpe, 51, 51, 51, seed=0, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_ten_thousand_pairs(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    check_task(name, tokenizer, LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_ten_thousand_pairs_of_the_packaged_tokenizer(name: str, packaged: PreTrainedTokenizerBase) -> None:
    check_task(name, packaged, LARGE)
