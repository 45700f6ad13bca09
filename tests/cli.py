"""A tiny local model with pairs of its own, and how tests call the command line on it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from absl import logging as absl_logging
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from circuitlit.cli.main import run_verb

absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__  # pytest's own it would close, with Hydra's help
WORDS = [f"w{number}" for number in range(40)]
FAST = [
    "model=local",
    "task=jsonl",
    "callbacks.progress_bar=false",
    "mask.schedule.steps=12",
    "evaluate.controls=1",
    "evaluate.max_kl_share=1000",
    "callbacks.snapshot_every=4",
    "callbacks.checkpoint_every=4",
    "callbacks.probe_every=4",
    "data.batch_size=4",
    "sparsity.target=0.8",
]
QUICK_LOOK = ["logger=none", "debug=fast", "task.build.n_test=7", "callbacks=none", "task.min_accuracy=0"]


def write_local(folder: Path) -> Path:
    """Put a tiny model, its tokenizer and a file of pairs into a folder."""
    vocabulary = {word: index for index, word in enumerate(["[unk]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[unk]").save_pretrained(folder / "model")
    torch.manual_seed(0)
    numbers = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 41, "n_positions": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **numbers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / "model")
    draw = random.Random(0)
    rows = []
    for number in range(36):
        clean, corrupted = (" ".join(draw.sample(WORDS, 6)) for _ in range(2))
        answer, wrong = draw.sample(WORDS, 2)
        split = ("train", "val", "test")[number % 3]
        row = {
            "clean": clean,
            "corrupted": corrupted,
            "answer": f" {answer}",
            "wrong_answer": f" {wrong}",
            "split": split,
        }
        rows.append(row)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def move_weights(folder: Path) -> None:
    """Write other weights into a model's folder, as a training run does."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[-1, -1] += 0.5
    model.save_pretrained(folder)


def swap_prompts(file: Path) -> None:
    """Swap clean and corrupted prompts in a file of pairs."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    swapped = [row | {"clean": row["corrupted"], "corrupted": row["clean"]} for row in rows]
    file.write_text("\n".join(map(json.dumps, swapped)))


def settings(local: Path, out: Path, *more: str) -> list[str]:
    """A fast run on the folder of `write_local`: what takes long is in it only where `more` says how."""
    paths = [f"model.path={local}/model", f"task.build.path={local}/pairs.jsonl", f"hydra.run.dir={out}"]
    plain = {"explain": "explain=null", "logger": "logger=none"}
    absent = [word for name, word in plain.items() if not any(given.startswith(name) for given in more)]
    return [*FAST, *absent, *paths, *more]


def not_a_number(logits: torch.Tensor, teacher: torch.Tensor, batch: object) -> torch.Tensor:
    """An objective whose values and gradients are NaN."""
    return torch.nan * logits.sum((1, 2))


def call(*argv: str, verb: str = "train") -> None:
    """Run a verb in this process."""
    GlobalHydra.instance().clear()
    run_verb(verb, [f"{verb}.py", *argv])


def failure(capsys: pytest.CaptureFixture[str], *argv: str, verb: str = "train") -> str:
    """The one line that a mistake prints."""
    with pytest.raises(SystemExit) as stop:
        call(*argv, verb=verb)
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert "Traceback" not in lines[0]
    return lines[0]
