"""Tasks: encoding of pairs, files of a user's own, configurations."""

from __future__ import annotations

import copy
import gzip
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer, normalizers, processors
from toy_tokenizers import wrap
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks import Pair, Pairs, encode, in_chat, jsonl
from circuitlit.tasks.pair import LACKING

HERE = Path(__file__).parent
CLEAN, CORRUPTED = (
    "Then, Mary and John went to the store. John gave a drink to",
    "Then, Paul and Tom went to the store. Sam gave a drink to",
)


def pair(clean: str = CLEAN, corrupted: str = CORRUPTED, answer: str = " Mary", wrong: str | None = None) -> Pair:
    return Pair(clean, corrupted, answer, wrong, source="pairs.jsonl:18")


def keys(pairs: list[Pair]) -> set[str]:
    return {p.clean for p in pairs}


def words(tokenizer: PreTrainedTokenizerBase, ids) -> list[str]:
    return [tokenizer.decode([int(i)]).strip() for i in ids]


# --- encoding


def test_answers_of_several_tokens_are_forced(tokenizer):
    long = " wyx"
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
    assert batch.wrong[0] == LACKING and batch.contrast.tolist() == [0, 0]
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
    r"the answer 'o' merges with the last token of the prompt: alone that ends in the tokens \[.*' t'\], joined in "
    r"\[.*' to'\]; begin the answer with a space": [pair(clean=CLEAN[:-1], corrupted=CORRUPTED[:-1], answer="o")],
    "the wrong answer 'nd' merges": [pair(clean=CLEAN[:-2] + "a", corrupted=CORRUPTED[:-2] + "a", wrong="nd")],
    "answer is empty": [pair(answer=" ")],
    "wrong answer is empty": [pair(wrong="")],
    "a prompt is empty": [pair(clean=" ")],
    "clean and corrupted prompt are the same": [pair(corrupted=CLEAN)],
    "do not differ in any token": [pair(answer=" Mary", wrong=" Mary Ann")],
    r"pair 1 \(pairs.jsonl:18\): the same as pair 0": [pair(), pair()],
    r"pair 0 \(pairs.jsonl:18\): role 'verb' is not one of other, end": [
        Pair(CLEAN, CORRUPTED, " Mary", roles=(("verb", 0, 4),), source="pairs.jsonl:18")
    ],
    r"pair 0 \(mine\): a bridge .* give the pair the role 'subject'": [
        Pair(CLEAN, CORRUPTED, " Mary", source="mine", bridge=(" Ann", " Bob"))
    ],
}


@pytest.mark.parametrize("message", BAD_PAIRS)
def test_encode_says_what_is_wrong_with_a_pair(message, byte_bpe):
    with pytest.raises(UserError, match=message):
        encode(BAD_PAIRS[message], byte_bpe, ("other", "end"))


# --- the border between prompt and answer


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("name", ["byte_bpe", "metaspace", "packaged"])
def test_a_space_at_the_end_of_the_prompt_is_the_answers(name, trimmed, request):
    tokenizer = copy.deepcopy(request.getfixturevalue(name))
    if trimmed and name != "metaspace":  # as GPT-2's offsets, which leave spaces out
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    roles = (("name", CLEAN.index("Mary"), CLEAN.index("Mary") + 4),)
    choices = {"right": (" Mary", " John"), "wrong": (" Paul",)}
    usual = Pair(CLEAN, CORRUPTED, " Mary", " John", roles, **choices)
    bare = {side: tuple(text[1:] for text in texts) for side, texts in choices.items()}
    spaced = Pair(f"{CLEAN} ", f"{CORRUPTED} ", "Mary", "John", roles, **bare)
    names = ("other", "name", "end")
    assert encode([spaced], tokenizer, names).rows == encode([usual], tokenizer, names).rows
    longer = (
        replace(usual, answer=" wyx Mary", wrong_answer=None),
        replace(spaced, answer="wyx Mary", wrong_answer=None),
    )
    assert len({encode([one], tokenizer, names).rows[0] for one in longer}) == 1


def test_the_format_of_edge_pruning_with_a_space_before_the_tag(byte_bpe, tmp_path):
    lines = [
        {
            "clean": f"{CLEAN} <predict>{a}</predict>.",
            "corrupted": f"{CORRUPTED} <predict>{b}</predict>.",
            "split": split,
        }
        for split, a, b in (("train", "Mary", "Paul"), ("val", "John", "Tom"), ("test", "Paul", "Sam"))
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    (made,) = jsonl(byte_bpe, str(file), seed=0).train
    row = encode([made], byte_bpe, ("other", "end")).rows[0]
    assert byte_bpe.decode(row.answer) == " Mary" and byte_bpe.decode(row.clean) == CLEAN


def test_all_texts_of_a_pair_share_one_border(byte_bpe):
    """A space that only one of two answers takes is handed to both."""
    row = encode([pair(f"{CLEAN} ", f"{CORRUPTED} ", "Mary", "\nMary")], byte_bpe, ("other", "end")).rows[0]
    assert byte_bpe.decode(row.clean) == CLEAN and byte_bpe.decode(row.answer) == " Mary"
    assert byte_bpe.decode([row.wrong]).startswith(" ") and row.contrast == 0


def test_an_answer_inside_the_prompts_last_word_is_scored_there_and_said(byte_bpe, caplog):
    row = encode([pair(answer="Mary")], byte_bpe, ("other", "end")).rows[0]
    assert byte_bpe.decode(row.clean[:-1] if len(row.answer) > 1 else row.clean) == CLEAN
    assert row.answer == tuple(byte_bpe(f"{CLEAN}Mary")["input_ids"][row.end + 1 :])
    assert "'Mary' follows" in caplog.text and "(1 such answers)" in caplog.text
    caplog.clear()
    encode(
        [pair(), pair(f"{CLEAN} ", f"{CORRUPTED} ", "Mary"), pair(f"{CLEAN} (", f"{CORRUPTED} (", "Mary")],
        byte_bpe,
        ("", "end"),
    )
    assert not caplog.text


def test_many_pairs_are_shared_out_in_order(byte_bpe, monkeypatch):
    pairs = [pair(clean=f"{number} {CLEAN}", corrupted=f"{number} {CORRUPTED}") for number in range(50)]
    alone = encode(pairs, byte_bpe, ("other", "end"))
    modules = vars(sys.modules["circuitlit.tasks.encode"])
    monkeypatch.setitem(modules, "_MANY", 40)
    monkeypatch.setitem(modules, "_CHUNK", 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    assert encode(pairs, byte_bpe, ("other", "end")).rows == alone.rows
    with pytest.raises(UserError, match=r"pair 50 \(.*: clean has"):
        encode([*pairs, pair(corrupted=CORRUPTED + " and more")], byte_bpe, ("other", "end"))


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
        Pairs("mine", [pair()], [], [pair()])
    with pytest.raises(UserError, match=r"in test .* and in new_words"):
        Pairs("mine", [], [], [pair()], new_words=[pair()])
    with pytest.raises(ValueError, match="role names"):
        Pairs("mine", [], [], [], ("end", "other"))


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


def test_groups_of_a_file_stay_together_and_lines_without_one_stand_alone(byte_bpe, tmp_path):
    rows = [{**GOOD, "clean": f"{CLEAN} {i}", "group": f"g{i % 10}", "split": None} for i in range(40)]
    splits = jsonl(byte_bpe, write(tmp_path, *rows), seed=0, val_fraction=0.2, test_fraction=0.4)
    units = [{p.unit for p in own} for own in (splits.train, splits.val, splits.test)]
    assert [len(own) for own in units] == [4, 2, 4] and len(set.union(*units)) == 10
    assert [len(own) for own in (splits.train, splits.val, splits.test)] == [16, 8, 16]
    held_out = {**GOOD, "group": "g3", "split": "new_words"}
    splits = jsonl(byte_bpe, write(tmp_path, *rows, held_out), seed=0)
    assert len(splits.new_words) == 5 and {p.unit for p in splits.new_words} == {"g3"}
    alone = jsonl(byte_bpe, write(tmp_path, GOOD, {**GOOD, "clean": CLEAN + " 2"}), seed=0).test
    assert len({p.unit for p in alone}) == 2 and "" not in {p.unit for p in alone}


TAGGED = {"clean": "a b<predict> c</predict>", "corrupted": "a d<predict> e</predict>"}
BAD_ROWS = {
    "not JSON": "{",
    "a list where an object belongs": "[]",
    "field 'answer' is there twice; keep one": f'{{"answer": " John", {json.dumps(GOOD)[1:]}',
    "unknown field 'anwser'": {**GOOD, "anwser": " Mary"},
    "field 'clean' is missing": {"corrupted": CORRUPTED, "answer": " Mary"},
    "field 'answer' is missing": {"clean": CLEAN, "corrupted": CORRUPTED},
    "answer is 5, not a text": {**GOOD, "answer": 5},
    "answer is None, not a text; write one": {**GOOD, "answer": None},
    "clean is empty": {**GOOD, "clean": "  "},
    "answer is empty": {**GOOD, "answer": ""},
    "answer and wrong_answer are both ' Mary'": {**GOOD, "wrong_answer": " Mary"},
    "split is 'dev'; it is one of train, val": {**GOOD, "split": "dev"},
    "group is 5, not a text": {**GOOD, "group": 5},
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


def test_all_malformed_rows_of_a_list_are_named(byte_bpe):
    with pytest.raises(UserError, match=r"^row 1: answer is 5, not a text"):
        Pairs.from_list([GOOD, {**GOOD, "answer": 5}])
    with pytest.raises(UserError, match=r"^2 of 3 rows .* 2 x answer is nan, not a text; .* \(row 1, row 2\)$"):
        Pairs.from_list([GOOD, *[{**GOOD, "answer": math.nan}] * 2])
    longer = {**GOOD, "corrupted": LONG}
    with pytest.raises(UserError, match=r"pair 0 \(row 1\): clean has"):
        encode(
            Pairs.from_list([{**GOOD, "split": "test"}, {**longer, "split": "train"}]).train, byte_bpe, ("other", "end")
        )


UNEQUAL, MERGING = {**GOOD, "corrupted": LONG}, {**GOOD, "clean": CLEAN[:-1], "answer": "o"}
BAD_FILE = [GOOD, "{", UNEQUAL, {**UNEQUAL, "answer": " John"}, MERGING, "[", {**GOOD, "split": "train"}, TAGGED]


def test_all_bad_lines_are_counted_and_listed_by_kind(byte_bpe, tmp_path):
    path = write(tmp_path, *BAD_FILE)
    with pytest.raises(UserError) as caught:
        jsonl(byte_bpe, path, seed=0)
    said = str(caught.value)
    assert said.startswith("6 of 8 rows cannot be used: 2 x not JSON (") and said.endswith("task.build.drop_bad=true")
    for words in (
        f"({path}:2, {path}:6)",
        "2 x clean has 15 tokens, corrupted 16; patching is position-wise; fix the template or drop the pair",
        f"({path}:3, {path}:4)",
        "1 x the answer 'o' merges with the last token",
        f"1 x the same pair is in test ({path}:1) and in train; keep it in one split ({path}:7)",
    ):
        assert words in said


def test_bad_lines_are_left_out_where_that_is_asked_for(byte_bpe, tmp_path, caplog):
    path = write(tmp_path, *BAD_FILE)
    splits = jsonl(byte_bpe, path, seed=0, drop_bad=True, test_fraction=0, val_fraction=0)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [1, 0, 1]
    assert "6 of 8 rows are left out: 2 x not JSON" in caplog.text
    assert len(encode([*splits.train, *splits.test], byte_bpe, splits.role_names)) == 2
    with pytest.raises(UserError, match=r"2 of 2 rows cannot be used"):
        jsonl(byte_bpe, write(tmp_path, "{", UNEQUAL), seed=0, drop_bad=True)


@pytest.mark.parametrize("first", [{}, {"split": "val"}])
def test_lines_that_are_the_same_are_one_observation_in_one_split(first, byte_bpe, tmp_path):
    rows = [{"clean": f"{CLEAN} {i}", "corrupted": f"{CORRUPTED} {i}", "answer": " Mary"} for i in range(12)]
    path = write(tmp_path, {**rows[0], **first}, *rows, *rows[::-1], GOOD)
    for seed in range(3):
        splits = jsonl(byte_bpe, path, seed)
        for pairs in (splits.train, splits.val, splits.test):
            assert len(encode(pairs, byte_bpe, splits.role_names)) == len(pairs)
            assert all(pair.unit == twin.unit for pair in pairs for twin in pairs if pair.clean == twin.clean)
        home = [
            name for name in ("train", "val", "test") for pair in getattr(splits, name) if pair.clean == f"{CLEAN} 0"
        ]
        assert len(home) == 3 and len(set(home)) == 1 and home[0] == first.get("split", home[0])


def test_a_prompt_that_is_corrupted_in_several_ways_is_in_one_split(byte_bpe, tmp_path):
    """Or masks would be trained on the test's prompts."""
    rows = [
        {"clean": f"{CLEAN} {i}", "corrupted": f"{CORRUPTED} {i + other}", "answer": " Mary"}
        for other in (1, 2, 3)
        for i in range(12)
    ]
    for splits in (jsonl(byte_bpe, write(tmp_path, *rows), 0), Pairs.from_list(rows)):
        own = [{pair.clean for pair in getattr(splits, name)} for name in ("train", "val", "test")]
        assert sum(map(len, own)) == len(set.union(*own)) == 12
        assert encode(splits.test, byte_bpe, splits.role_names).n_groups == len(own[2])


def test_shares_and_numbers_that_are_none_are_refused(byte_bpe, tmp_path):
    rows = [{"clean": f"{CLEAN} {i}", "corrupted": CORRUPTED, "answer": " Mary"} for i in range(9)]
    for shares in ((0.7, 0.4), (-0.5, 0.4), (float("nan"), 0.4)):
        with pytest.raises(UserError, match=r"task own: val_fraction=.* are not shares"):
            Pairs.from_list(rows, val_fraction=shares[0], test_fraction=shares[1])
    for name, number in (("n_test", -1), ("n_test", 0), ("n_train", -2)):
        with pytest.raises(UserError, match=f"{name}={number} is below"):
            jsonl(byte_bpe, write(tmp_path, *rows), 0, **{name: number})


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
    for content in (b'{"clean": "\xe9"}', "{}".encode("utf-16-le"), gzip.compress(b"{}")):
        (tmp_path / "other.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"other\.jsonl is not UTF-8 text; save it as such, unpacked"):
            jsonl(byte_bpe, str(tmp_path / "other.jsonl"), seed=0)


# --- configuration


def task_preset(name: str) -> DictConfig:
    """A file of conf/task upon those that it begins with."""
    own = OmegaConf.load(HERE.parent / "conf" / "task" / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    below = [task_preset(one) for one in own.pop("defaults", []) if one != "_self_"]
    return OmegaConf.merge(*below, own)  # type: ignore[return-value]


@pytest.mark.parametrize("name", sorted(path.stem for path in (HERE.parent / "conf" / "task").glob("*.yaml")))
def test_configurations_build_splits(name, byte_bpe):
    config = OmegaConf.create({"seed": 5, "task": task_preset(name)})
    if name.startswith("tracr"):
        with pytest.raises(UserError, match=f"needs model={name}"):  # the compiled model's tokenizer, no other
            instantiate(config.task.build)(tokenizer=byte_bpe)
        return
    if name == "jsonl":
        config.task.build.path = str(HERE / "data" / "pairs.jsonl")
    splits = instantiate(config.task.build)(tokenizer=byte_bpe)
    assert config.task.name.startswith(splits.name) and config.task.name.startswith(name)
    build = config.task.build
    sizes = [1, 1, 1] if name == "jsonl" else [build.n_train, build.n_val, build.n_test]
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == sizes


# --- tokenizers


def test_texts_that_do_not_come_back_are_refused(metaspace, byte_bpe):
    with pytest.raises(UserError, match=r"makes '.*<unk>.*' of '.*Maryçois', so a part is unknown"):
        encode([pair(answer=" Maryçois")], metaspace, ("other", "end"))
    assert len(encode([pair(answer=" Maryçois")], byte_bpe, ("other", "end")))
    quiet = wrap(Tokenizer.from_str(byte_bpe.backend_tokenizer.to_str()))
    quiet.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="makes 'then"):
        encode([pair()], quiet, ("other", "end"))


SPACED = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}<a>"
TRIMMED = "<s>{% for m in messages %}John {{ m.content | trim }}\n{% endfor %}{{ enable_thinking }} "


@pytest.mark.parametrize(
    "template,prompt,answer", [(SPACED, f"<u>{CLEAN}</u><a>", " Mary"), (TRIMMED, f"<s>John {CLEAN}\nFalse ", "Mary")]
)
def test_prompts_become_messages(template, prompt, answer, metaspace, caplog):
    tokenizer = copy.deepcopy(metaspace)
    with pytest.raises(UserError, match="no chat template"):
        in_chat(Pairs("own", [], [], []), tokenizer)
    tokenizer.chat_template = template
    start = CLEAN.index("John")
    spaced = replace(pair(), clean=f"{CLEAN[6:]} ", corrupted=f"{CORRUPTED[6:]} ", answer="Mary")
    plain = replace(pair(), roles=(("name", start, start + 4),))
    made = in_chat(Pairs("own", [plain], [], [spaced], ("other", "name", "end")), tokenizer)
    framed = made.train[0]
    assert (framed.clean, framed.answer) == (prompt, answer)
    ((_, begin, end),) = framed.roles
    assert framed.clean[begin:end] == "John"
    assert ("strips the space" in caplog.text) == (template is TRIMMED)
    assert (made.test[0].clean == prompt.replace("Then, ", "")) == (template is TRIMMED)
    assert in_chat(made, tokenizer).train == made.train
    if template is TRIMMED:
        assert encode([framed], metaspace, made.role_names).rows[0].clean.count(1) == 1
    tokenizer.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(UserError, match="does not hold the message"):
        in_chat(made, tokenizer)
