"""Tuning: losses by hand, folders that load elsewhere, resuming, and the verb on a tiny local model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import WORDS, call, failure, settings
from conftest import tiny_model
from lightning import Trainer
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from circuitlit import load_subject
from circuitlit.cli import sides
from circuitlit.compare.capability import capabilities
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import INTERVALS
from circuitlit.finetune import (
    HeldOut,
    Optimisation,
    PreferenceTuner,
    RewardTuner,
    SupervisedTuner,
    TuningData,
    adalora,
    adapted,
    answer_logits,
    behaviour_change,
    examples_of_file,
    examples_of_task,
    ia3,
    lora,
    reference_log_probs,
    save_model,
    steps_to_save,
)
from circuitlit.finetune.finetune_model import finetune_model
from circuitlit.finetune.freeze import Frozen
from circuitlit.finetune.grpo import advantages, says_right
from circuitlit.model import Subject, unwrap
from circuitlit.objective import Outcome
from circuitlit.tasks import encode, jsonl
from circuitlit.tasks.pair import LACKING

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def tokenizer(local: Path):
    return AutoTokenizer.from_pretrained(local / "model")


@pytest.fixture
def model(local: Path):
    return AutoModelForCausalLM.from_pretrained(local / "model").eval()


@pytest.fixture(scope="module")
def examples(local: Path, tokenizer):
    return examples_of_task(jsonl(tokenizer, str(local / "pairs.jsonl"), seed=0), tokenizer)


def long_file(folder: Path, count: int = 12) -> Path:
    """Answers of one to three tokens after prompts of two to five."""
    rows = []
    for number in range(count):
        words = [WORDS[(7 * number + place) % len(WORDS)] for place in range(12)]
        n_prompt, n_answer = 2 + number % 4, 1 + number % 3
        prompt, chosen = " ".join(words[:n_prompt]), "".join(f" {w}" for w in words[5 : 5 + n_answer])
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": f" {words[10]}{chosen}"})
    file = folder / "preferences.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def fit(tuner, examples, steps: int, **more) -> None:
    Trainer(max_steps=steps, **QUIET).fit(tuner, TuningData(examples, 4, seed=0), **more)


def text_log_prob(model, tokenizer, prompt: str, answer: str) -> float:
    """Log-probability of an answer, one stock forward a pair, no padding: shares no code with the tuners."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
    log_probs = model(ids).logits[0].detach().log_softmax(-1)
    return sum(float(log_probs[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))


def test_the_trained_position_is_the_one_that_circuits_read(local: Path, tokenizer, examples) -> None:
    splits = jsonl(tokenizer, str(local / "pairs.jsonl"), seed=0)
    encoded = encode(splits.train, tokenizer, splits.role_names)
    assert examples["train"].chosen.rows == encoded.rows
    mirrored = examples["train"].rejected.rows
    assert [(row.clean, row.answer) for row in mirrored] == [(row.clean, (row.wrong,)) for row in encoded.rows]


def test_losses_are_those_computed_text_by_text(tmp_path: Path, model, tokenizer) -> None:
    file = long_file(tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**row, "split": "train" if i else "test"}) for i, row in enumerate(rows)))
    split = examples_of_file(str(file), tokenizer)["train"]
    batch = split.collate(range(len(split)))
    good = [text_log_prob(model, tokenizer, row["prompt"], row["chosen"]) for row in rows[1:]]
    bad = [text_log_prob(model, tokenizer, row["prompt"], row["rejected"]) for row in rows[1:]]
    tokens = sum(len(row["chosen"].split()) for row in rows[1:])
    sft = SupervisedTuner(model, Optimisation(1, 1e-3)).figures(batch, 0)["loss"]
    assert float(sft) == pytest.approx(-sum(good) / tokens, rel=1e-5)

    reference = torch.randn(len(good), 2, generator=torch.Generator().manual_seed(0))
    dpo = PreferenceTuner(model, Optimisation(1, 1e-3), beta=0.3, reference=reference).figures(batch, 0)["loss"]
    margins = [0.3 * (g - float(r[0]) - b + float(r[1])) for g, b, r in zip(good, bad, reference, strict=True)]
    assert float(dpo) == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / len(margins), rel=1e-4)


def test_all_bad_lines_of_a_file_are_named_together(tmp_path: Path, tokenizer) -> None:
    good = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4"}
    lines = ["{", {**good, "chosen": ""}, {**good, "split": "dev"}, "[]", {"prompt": None, "chosen": " w1"}, good]
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(UserError, match="5 of 6 rows cannot be used: 1 x not JSON") as caught:
        examples_of_file(str(file), tokenizer)
    assert all(f"{file}:{number}" in str(caught.value) for number in range(1, 6))
    file.write_text('{"prompt": "w1 w2", "chosen": " w3", "chosen": " w4"}')
    with pytest.raises(UserError, match=r"bad\.jsonl:1: field 'chosen' is there twice; keep one"):
        examples_of_file(str(file), tokenizer)
    with pytest.raises(UserError, match=r"is a folder; name a file with one object a line: tune\.data=FILE"):
        examples_of_file(str(tmp_path), tokenizer)
    file.write_text("\n".join(json.dumps({**good, "split": "train", "rejected": " w3"}) for _ in range(3)))
    file.write_text(file.read_text() + "\n" + json.dumps({**good, "split": "test"}))
    with pytest.raises(UserError, match="3 of 3 rows cannot be used: 3 x chosen and rejected do not differ"):
        examples_of_file(str(file), tokenizer)


@pytest.mark.parametrize("kind", ["full", "lora", "adalora"])
def test_dpo_starts_at_log_two(kind: str, model, examples) -> None:
    batch = examples["train"].collate(range(8))
    if kind == "full":
        reference = reference_log_probs(model, examples["train"], 5)
        tuner = PreferenceTuner(model, Optimisation(9, 1e-3), reference=reference)
    else:
        config = {"lora": lora, "adalora": adalora}[kind](model, 9)
        tuner = PreferenceTuner(adapted(model, config), Optimisation(9, 1e-3))
    assert float(tuner.figures(batch, 0)["loss"]) == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_without_a_tie_learns_nothing(model, examples) -> None:
    batch = examples["train"].collate(range(8))
    away = torch.zeros(len(examples["train"]), 2)
    tuner = PreferenceTuner(model, Optimisation(1, 1e-3), beta=1e-7, reference=away)
    assert float(tuner.figures(batch, 0)["loss"]) == pytest.approx(math.log(2), abs=1e-5)


def test_dpo_prefers_what_it_is_told(model, examples) -> None:
    tuner = PreferenceTuner(adapted(model, lora(model, 25)), Optimisation(25, 1e-2))
    fit(tuner, examples, 25)
    assert float(tuner.figures(examples["train"].collate(range(12)), 0)["preferred"]) == 1


@pytest.mark.parametrize("kind", ["full", "lora", "adalora"])
def test_sft_lowers_the_loss_and_its_folder_loads_elsewhere(
    kind: str, local: Path, tmp_path: Path, model, tokenizer, examples
) -> None:
    batch = examples["train"].collate(range(12))
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    if kind == "full":
        trained = model.requires_grad_(True)
    else:
        trained = adapted(model, {"lora": lora, "adalora": adalora}[kind](model, 30))
    tuner = SupervisedTuner(trained, Optimisation(30, 1e-2 if kind != "adalora" else 5e-2))
    before = float(tuner.figures(batch, 0)["loss"])
    fit(tuner, examples, 30)
    after = float(tuner.figures(batch, 0)["loss"])
    assert after < before - 0.3
    save_model(trained, tokenizer, tmp_path / "tuned")
    if kind == "full":
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    else:
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(local / "model"), tmp_path / "tuned")
        base = {
            k.replace(".base_layer", "").removeprefix("base_model.model."): v for k, v in trained.state_dict().items()
        }
        assert all(torch.equal(base[name], value) for name, value in frozen.items())
    places = batch.chosen.clean, batch.chosen.positions
    close = {"rtol": 0, "atol": 0} if kind != "adalora" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(answer_logits(loaded.eval(), *places), answer_logits(trained, *places), **close)
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").get_vocab() == tokenizer.get_vocab()


def test_modules_that_adalora_leaves_no_rank_are_saved_without_a_warning(
    local: Path, tmp_path: Path, model, tokenizer, recwarn: pytest.WarningsRecorder
) -> None:
    trained: Any = adapted(model, adalora(model, 30))
    values = {name: value for name, value in trained.base_model.model.named_parameters() if ".lora_E" in name}
    bare = next(iter(values))
    values[bare].data.zero_()
    trained.peft_config["default"].rank_pattern = {name: [name != bare] * len(v) for name, v in values.items()}
    save_model(trained, tokenizer, tmp_path / "tuned")
    assert not [warning for warning in recwarn if "invalid shape" in str(warning.message)]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(local / "model"), tmp_path / "tuned")
    prompts = torch.arange(6)[None]
    torch.testing.assert_close(loaded.eval()(prompts).logits, trained.eval()(prompts).logits)


def test_the_loss_is_on_answer_tokens_only(model, examples) -> None:
    """Other prompt embeddings get gradients through attention, but no prompt position predicts anything."""
    one = examples["train"].collate([0])
    hidden = {}
    handle = model.transformer.ln_f.register_forward_hook(lambda m, i, o: hidden.update(out=o) or o.retain_grad())
    tuner = SupervisedTuner(model.requires_grad_(True), Optimisation(1, 1e-3))
    tuner.figures(one, 0)["loss"].backward()
    handle.remove()
    touched = hidden["out"].grad.abs().sum(-1)[0].nonzero()[:, 0].tolist()
    assert touched == [int(one.chosen.lengths[0]) - 1]


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    scale = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    torch.testing.assert_close(advantages(rewards), torch.tensor([[1.0, -1, -1, 1], [0, 0, 0, 0]]) * scale)


def test_reward_is_the_whole_answer(tmp_path: Path, tokenizer) -> None:
    batch = examples_of_file(str(long_file(tmp_path, 40)), tokenizer)["train"].collate(range(8)).chosen
    right = batch.answer[:, None].repeat(1, 2, 1)
    wrong = right.clone()
    wrong[:, 1, 0] += 1
    assert says_right(wrong, batch).tolist() == [[1.0, 0.0]] * 8


@pytest.mark.long
@pytest.mark.parametrize("adapter", [True, False])
def test_grpo_raises_the_reward(adapter: bool, model, examples) -> None:
    reference = None if adapter else AutoModelForCausalLM.from_pretrained(model.config._name_or_path)
    trained = adapted(model, lora(model, 90, r=4)) if adapter else model.requires_grad_(True)
    tuner = RewardTuner(trained, Optimisation(90, 2e-2), group=32, beta=0.01, reference=reference)
    batch = examples["train"].collate(range(12))
    start = tuner.figures(batch, 0)
    assert float(start["kl"].detach().abs()) < 1e-6
    fit(tuner, examples, 90)
    end = tuner.figures(batch, 0)
    assert float(end["reward"]) > float(start["reward"]) + 0.2
    assert float(end["kl"]) > 0.01
    assert not any("_frozen" in name for name in tuner.state_dict())


def test_grpo_samples_several_tokens_from_the_model_itself(tmp_path: Path, model, tokenizer) -> None:
    batch = examples_of_file(str(long_file(tmp_path, 40)), tokenizer)["train"].collate(range(6)).chosen
    tuner = RewardTuner(model, Optimisation(1, 1e-3), group=3, reference=model)
    tokens = tuner.sample(batch, torch.Generator().manual_seed(1))
    found = tuner._log_probs(model, batch, tokens)
    for row in range(6):
        end, count = int(batch.positions[row, 0]), int(batch.answer_mask[row].sum())
        for copy in range(3):
            ids = torch.cat([batch.clean[row, : end + 1], tokens[row, copy, :count]])
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
            for place in range(count):
                expected = log_probs[end + place, ids[end + 1 + place]]
                torch.testing.assert_close(found[row, copy, place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_ranks_by_regular_expression(name: str) -> None:
    model = tiny_model(name).eval()
    inside = {"gpt2": "mlp.c_fc", "llama": "mlp.up_proj", "gpt_neox": "mlp.dense_h_to_4h"}[name]
    wrapped = adapted(model, lora(model, 1, r=2, rank_pattern={rf"[hs]\.1\.{inside}|layers\.1\.{inside}": 5}))
    ranks = {n: module.r["default"] for n, module in wrapped.named_modules() if hasattr(module, "lora_A")}
    assert [n.split("base_model.model.")[1] for n, r in ranks.items() if r == 5] == [
        n.split("base_model.model.")[1] for n in ranks if f".1.{inside}" in n
    ]
    assert set(ranks.values()) == {2, 5} and not any("lm_head" in n or "embed_out" in n for n in ranks)
    ids = torch.arange(1, 8)[None]
    torch.testing.assert_close(wrapped(ids).logits, tiny_model(name).eval()(ids).logits)


def test_patterns_and_targets_that_match_nothing_are_named() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(UserError, match="'nothing'"):
        adapted(model, lora(model, 1, rank_pattern={"nothing": 2}))
    with pytest.raises(UserError, match="target_modules"):
        adapted(tiny_model("gpt2"), lora(model, 1, target_modules=["nowhere"]))
    assert isinstance(lora(model, 1), LoraConfig)


def test_steps_to_save() -> None:
    assert steps_to_save(100, 5) == [0, 1, 5, 22, 100]
    assert steps_to_save(3, 6) == [0, 1, 2, 3]
    assert steps_to_save(9, [9, 0, 4]) == [0, 4, 9]
    assert steps_to_save(9, 1) == [9] and steps_to_save(9, 0) == []
    with pytest.raises(UserError, match="outside 0 to 9"):
        steps_to_save(9, [10])


def test_paired_tests_by_hand() -> None:
    ones, zeros = torch.ones(20), torch.zeros(20)
    base = Outcome(zeros, zeros, ones * torch.nan, torch.tensor([1.0] * 4 + [0.0] * 16), ones)
    tuned = Outcome(zeros + 0.1, ones, ones * torch.nan, torch.tensor([0.0] + [1.0] * 11 + [0.0] * 8), zeros)
    change = behaviour_change(base, tuned)
    assert (change.gained, change.lost) == (8, 1)
    assert change.accuracy_p == pytest.approx(2 * (1 + 9) / 2**9)
    assert change.accuracy_change.value == pytest.approx(7 / 20)
    assert change.shortfall("accuracy") is None and change.shortfall("metric") is None
    back = behaviour_change(tuned, base)
    assert "no significant rise" in (back.shortfall("accuracy") or "") and back.shortfall("metric")
    more_certain = behaviour_change(base, Outcome(zeros, ones, ones * torch.nan, base.accuracy, zeros))
    assert "tune.score=metric" in (more_certain.shortfall("accuracy") or "")
    same = behaviour_change(base, base)
    assert same.accuracy_p == 1 and same.accuracy_change.value == 0 and same.shortfall("accuracy")


@pytest.mark.parametrize("make", [lora, ia3, None])
def test_what_an_adapter_would_undo_is_refused(local: Path, model, examples, make):
    """IA3 scaled frozen heads, and a second tuning wrote a folder that loads as another model."""
    subject = load_subject(str(local / "model"))
    adapter = make(subject.model, 4) if make else LoraConfig(modules_to_save=["ln_f"], target_modules=["c_fc"])
    subject = Subject(unwrap(get_peft_model(subject.model, adapter)), subject.tokenizer)
    with pytest.raises(UserError, match=r"tune\.freeze needs adapter=none"):
        Frozen(subject, ["a0.h0"])
    with pytest.raises(UserError, match="has an adapter on it already"):
        finetune_model(subject, examples, steps=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"score": "acc"}, "score=acc is none of accuracy, metric"),
        ({"eval_batch_size": 0}, "eval_batch_size=0 must be at least 1"),
        ({"probe_pairs": -1}, "probe_pairs=-1 at least 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is below 0"),
        ({"lr": math.inf}, "lr=inf must be above 0"),
    ],
)
def test_settings_out_of_their_range_are_refused(local: Path, examples, given: dict[str, Any], said: str):
    subject = load_subject(str(local / "model"))
    with pytest.raises(UserError, match=said):
        finetune_model(subject, examples, **{"steps": 1, **given})
    with pytest.raises(UserError, match="no split val; give one"):
        finetune_model(subject, {name: examples[name] for name in ("train", "test")}, steps=1)


def test_a_metric_that_some_pairs_lack_is_refused_before_the_tuning(local: Path, examples):
    """It was refused after it, and the tuned model was lost."""
    subject, test = load_subject(str(local / "model")), examples["test"]
    rows = [row._replace(wrong=LACKING) if place else row for place, row in enumerate(test.chosen.rows)]
    lacking = {**examples, "test": replace(test, chosen=replace(test.chosen, rows=rows))}
    with pytest.raises(UserError, match=r"tune\.score=metric needs pairs with wrong answers"):
        finetune_model(subject, lacking, score="metric", steps=1, fit=lambda *_: pytest.fail("tuned"))


def test_an_adapter_belongs_to_a_revision_of_its_model(local: Path, tmp_path: Path, examples, monkeypatch):
    """Beside an adapter that was tuned on a revision its model was loaded as the hub has it today."""
    subject = load_subject(str(local / "model"), revision="step1000")
    finetune_model(subject, examples, adapter=lora(subject.model, 1), steps=1, folder=tmp_path)
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(sides, "load_subject", lambda path, revision, **_: asked.append((path, revision)))
    monkeypatch.setattr(sides, "device_of", lambda _: "cpu")
    cfg = OmegaConf.create({"model": {"dtype": "float32", "trust_remote_code": False}, "paths": {"cache_dir": ""}})
    sides.load_side(cfg, str(tmp_path), "tuned")
    assert asked == [(str(local / "model"), "step1000")]


def test_lines_that_are_there_twice_are_in_one_split(tmp_path: Path, tokenizer):
    """What was tuned on was tested as held out."""
    rows = [{"prompt": f"{WORDS[n]} {WORDS[n + 1]}", "chosen": f" {WORDS[n + 2]}"} for n in range(10)]
    file = tmp_path / "twice.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, *rows, rows[0] | {"split": "train"}])))
    splits = examples_of_file(str(file), tokenizer)
    seen = {name: {row.clean for row in split.chosen.rows} for name, split in splits.items()}
    assert sum(map(len, seen.values())) == 10 and [len(splits[name]) for name in ("val", "test")] == [2, 4]


def test_a_rise_of_one_large_sentence_while_all_others_fall_is_no_rise():
    """The pairs' mean and the sentences' mean have different signs; the test is of the latter."""
    first = torch.arange(120) < 100
    groups = torch.where(first, 0, torch.arange(120))
    nothing = torch.zeros(120)
    base, tuned = (
        Outcome(nothing, right.float(), nothing * torch.nan, right.float(), nothing, groups)
        for right in (~first, first)
    )
    change = behaviour_change(base, tuned)
    assert change.gained == 100 and change.accuracy_p < 1e-6
    assert "its mean over sentences fell" in (change.shortfall("accuracy") or "") and change.shortfall("metric")
    for outcomes in ((base, tuned), (tuned, base)):
        assert capabilities({"own": outcomes}, chance=0.1, min_effect=0.05)["own"].verdict == "unchanged"


def test_a_model_behaves_like_itself(model, examples) -> None:
    held = HeldOut(model, examples["test"].chosen, 5)
    again = held.measure(model)
    assert torch.equal(held.base.metric, again.metric) and float(again.kl.abs().max()) < 1e-6


def tune(local: Path, out: Path, *more: str) -> list[str]:
    return settings(local, out, "logger=none", "tune.steps=12", "tune.lr=1e-2", "tune.probe_every=4", *more)


def test_the_verb_leaves_folders_index_and_result(local: Path, tmp_path: Path) -> None:
    call(*tune(local, tmp_path, "adapter=lora", "tune.checkpoints=[0,3,12]"), verb="finetune")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["tune"], result["adapter"], result["steps"]) == ("sft", "lora", 12)
    assert result["status"] in ("OK", "FAILED") and bool(result["reason"]) == (result["status"] == "FAILED")
    assert set(result["held_out"]["accuracy_change"]) == set(INTERVALS)
    index = json.loads((tmp_path / "checkpoints" / "checkpoints.json").read_text())
    assert index["kind"] == "peft" and [row["step"] for row in index["checkpoints"]] == [0, 3, 12]
    assert [row["examples"] for row in index["checkpoints"]] == [0, 12, 48]
    assert [row["tokens"] for row in index["checkpoints"]] == [0, 72, 288]
    assert set(index["checkpoints"][1]["metrics"]) == {"accuracy", "metric", "kl"}
    rows = json.loads((tmp_path / "history.json").read_text())["rows"]
    assert [row["step"] for row in rows if "loss" in row] == list(range(12))
    assert [row["step"] for row in rows if "val_accuracy" in row] == [0, 4, 8, 12]
    last, tuned = (tmp_path / part / "adapter_model.safetensors" for part in ("checkpoints/step_000012", "tuned"))
    assert last.read_bytes() == tuned.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tune=sft", pytest.param("tune=grpo adapter=adalora", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_unbroken_one(kind: str, local: Path, tmp_path: Path) -> None:
    call(*tune(local, tmp_path / "whole", *kind.split()), verb="finetune")
    more = ["callbacks.checkpoint_every=5", *kind.split()]
    call(*tune(local, tmp_path / "part", *more), verb="finetune")
    saved = tmp_path / "part" / "checkpoints" / "resume_000010.ckpt"
    assert saved.is_file()
    call(*tune(local, tmp_path / "rest", *more, f"ckpt_path={saved}"), verb="finetune")
    name = "adapter_model.safetensors" if "adapter" in kind else "model.safetensors"
    whole, rest = (tmp_path / run / "tuned" / name for run in ("whole", "rest"))
    for one, other in zip(load_file(whole).values(), load_file(rest).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    indices = [json.loads((tmp_path / run / "checkpoints/checkpoints.json").read_text()) for run in ("whole", "rest")]
    seen = [[(row["step"], row["examples"], row["tokens"]) for row in index["checkpoints"]] for index in indices]
    assert seen[0] == seen[1]


BAD = {
    "rank": (["adapter=lora", "+adapter.build.rank_pattern.nothing=3"], "'nothing'"),
    "adapter": (["adapter=peft", "adapter.path=some/where"], "finished adapter"),
    "steps": (["tune.steps=0"], "tune.steps=0"),
    "checkpoints": (["tune.checkpoints=[99]"], "outside 0 to 12"),
    "data": (["tune.data=missing.jsonl"], "missing.jsonl"),
    "dtype": (["model.dtype=bfloat16"], "would round the updates"),
    "beta": (["tune=dpo", "tune.build.beta=0"], "not above 0"),
    "group": (["tune=grpo", "tune.build.group=1"], "at least 2"),
    "nan": (["tune.lr=1e6"], "lower tune.lr"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_get_one_sentence(name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, words = BAD[name]
    assert words in failure(capsys, *tune(local, tmp_path, *more), verb="finetune")
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "finetune.log"}


def test_tuning_on_a_file_of_preferences(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = long_file(tmp_path, 24)
    call(*tune(local, tmp_path / "out", "tune=dpo", f"tune.data={file}"), verb="finetune")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["held_out"]["n_pairs"] == 5 and result["score"] == "metric"
    assert [row["step"] for row in json.loads((tmp_path / "out/history.json").read_text())["rows"] if "margin" in row]
    file.write_text(file.read_text() + '\n{"prompt": "w1"}')
    assert ":25:" in failure(capsys, *tune(local, tmp_path / "bad", f"tune.data={file}"), verb="finetune")


def test_a_space_at_the_end_of_a_prompt_is_the_continuations(byte_bpe: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = {}
    for name, end, start in (("usual", "", " "), ("spaced", " ", "")):
        lines = [
            {
                "prompt": f"John gave a drink to{end}",
                "chosen": f"{start}Mary",
                "rejected": f"{start}Tom",
                "split": split,
            }
            for split in ("train", "test")
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        made = examples_of_file(str(tmp_path / name), byte_bpe)["train"]
        rows[name] = [made.chosen.rows, made.rejected.rows if made.rejected else None]
    assert rows["usual"] == rows["spaced"]
