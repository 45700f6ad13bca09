"""The command line on a tiny local model: a whole run, resuming after SIGKILL, every kind of bad input."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call, failure, settings
from forked import finished, start
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from circuitlit.cli import first_page
from circuitlit.cli.main import VERBS, main
from circuitlit.evaluate.statistics import INTERVALS
from circuitlit.graph import Circuit


def test_attribute_leaves_a_circuit_and_its_evaluation(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=none", "evaluate.controls=3"), verb="attribute")
    assert {"circuit.safetensors", "circuit.json", "result.json", "report.html"} <= {p.name for p in tmp_path.iterdir()}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == Circuit.load(tmp_path).scores.method == "mask_gradients"
    assert result["steps"] == 0 and "attribution" not in result and result["random"]["n_circuits"] == 3


def test_gates_that_end_soft_are_told_apart_from_the_circuit(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*settings(local, tmp_path, "logger=none", "mask.schedule.hard=0", "mask.schedule.harden=0"))
    gates = json.loads((tmp_path / "result.json").read_text())["gates"]
    assert gates["n_between"] > 0 and set(gates["kl"]) == set(INTERVALS)
    apart = gates["cut_kl"]["value"] - gates["kl"]["value"]
    assert gates["cut_minus_gates_kl"]["value"] == pytest.approx(apart, abs=1e-5)
    assert "The gates as trained: " in capsys.readouterr().out


def test_a_process_that_goes_on_logs_nothing_more_into_the_run(local: Path, tmp_path: Path) -> None:
    root = logging.getLogger()
    before = list(sys.argv), list(root.handlers), root.level
    call(*settings(local, tmp_path, "logger=none", "evaluate.controls=1"), verb="attribute")
    assert (list(sys.argv), list(root.handlers), root.level) == before
    log = tmp_path / "attribute.log"
    said = log.read_text()
    logging.getLogger("of the notebook").error("this is not of the run")
    assert log.read_text() == said


@pytest.mark.parametrize("verb", ["train", "attribute"])
def test_a_task_that_the_model_cannot_do_is_reported_not_searched(
    verb: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*settings(local, tmp_path, "logger=none", "task.min_accuracy=0.9"), verb=verb)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "FAILED" and "does not do the task" in result["reason"]
    assert result["behaviour"]["n_pairs"] == 12 and result["behaviour"]["accuracy"]["value"] < 0.9
    assert result["n_edges"] is None and result["seconds"] > 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED: the model does not")]
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "result.json", f"{verb}.log"}


def test_a_whole_run_leaves_everything(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=wandb_offline"))
    expected = {".hydra", "checkpoints", "masks", "circuit.json", "circuit.safetensors", "result.json", "report.html"}
    assert expected <= {p.name for p in tmp_path.iterdir()}
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    result = json.loads((tmp_path / "result.json").read_text())
    circuit = Circuit.load(tmp_path)
    assert result["n_edges"] == circuit.n_edges == round(0.2 * circuit.graph.n_edges)
    assert result["n_edges_reachable"] == circuit.n_reachable
    assert result["status"] in ("OK", "FAILED", "NOT MEASURABLE")
    assert result["schema"] == {"name": "circuit", "version": 3}
    assert (result["n_pairs"], result["steps"], result["task"], result["seed"]) == (12, 12, "jsonl", 0)
    for kind in ("full", "corrupted", "random", "shuffled", "attribution", "attribution_reachable"):
        for metric in ("kl", "faithfulness", "faithfulness_raw", "accuracy", "exact_match", "logit_diff"):
            assert set(result[kind][metric]) == set(result[metric]) == set(INTERVALS)
    assert result["full"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert result["full"]["faithfulness"]["value"] == pytest.approx(1)
    assert result["corrupted"]["faithfulness"]["value"] == pytest.approx(0)
    assert result["gates"]["n_between"] == result["gates"]["n_differ"] == 0  # the last steps ran what was cut
    assert result["gates"]["cut_minus_gates_kl"]["value"] == 0
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [
        f"step_{s:06d}.safetensors" for s in (0, 4, 8, 12)
    ]
    rows = json.loads((tmp_path / "history.json").read_text())["rows"]
    assert [row["step"] for row in rows if "loss" in row] == list(range(12))
    assert [row["step"] for row in rows if "hard_kl" in row] == [0, 4, 8, 12]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["log_alpha"]
    final = load_file(tmp_path / "masks" / "step_000012.safetensors")["log_alpha"]
    assert torch.equal(final, circuit.scores.values[0])


def test_a_first_page_follows_the_training_and_is_replaced(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(first_page, "EVERY", 0)
    seen: list[str] = []
    write = first_page.write_simple_page
    monkeypatch.setattr(first_page, "write_simple_page", lambda *a, **k: seen.append(write(*a, **k).read_text()))
    call(*settings(local, tmp_path, "logger=none"))
    assert (
        "about to be trained" in seen[0] and "mask_gradients, absolute" in seen[0] and "Training so far" not in seen[0]
    )
    assert "step 2 of" in seen[2] and "Training so far" in seen[2] and 'http-equiv="refresh"' in seen[2]
    page = (tmp_path / "report.html").read_text()
    assert "refresh" not in page.split("<body")[0] and "What attribution alone finds" not in page
    assert "a first page" in capsys.readouterr().out


@pytest.mark.parametrize("ablation,roles", [("zero", "true"), ("mean", "false")])
def test_other_ablations_and_masks_run(local: Path, tmp_path: Path, ablation: str, roles: str) -> None:
    more = [f"ablation={ablation}", "logger=csv", "mask.recompute=true", "objective=logit_difference"]
    more.append(f"mask.roles={roles}")
    call(*settings(local, tmp_path, *more))
    assert json.loads((tmp_path / "result.json").read_text())["ablation"] == ablation
    assert list((tmp_path / "csv").rglob("metrics.csv"))


def test_masks_run_on_the_adapted_model(local: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(local / "model")
    torch.manual_seed(1)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    more = ["logger=none", "adapter=peft", f"adapter.path={tmp_path}/adapter"]
    call(*settings(local, tmp_path / "with", *more, "mask.schedule.steps=2"))
    call(*settings(local, tmp_path / "without", "logger=none"), verb="attribute")
    tuned, base = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("with", "without"))
    assert tuned["provenance"]["model"]["adapter"] == f"{tmp_path}/adapter"
    assert abs(tuned["full"]["logit_diff"]["value"] - base["full"]["logit_diff"]["value"]) > 1e-3


@pytest.mark.long
def test_a_failed_status_is_an_exit_status_where_asked_for(local: Path, tmp_path: Path) -> None:
    bad = ["logger=none", "evaluate.max_kl_share=0.001", "callbacks=none", "mask.schedule.steps=2"]
    for number, more in enumerate(([], ["-m", "seed=0"])):
        out = [f"hydra.run.dir={tmp_path}/{number}", f"hydra.sweep.dir={tmp_path}/{number}"]
        with pytest.raises(SystemExit) as stop:
            call(*more[:1], *settings(local, tmp_path, *bad, *out, "fail=true", *more[1:]))
        assert stop.value.code == 3
    assert json.loads((tmp_path / "0" / "result.json").read_text())["status"] == "FAILED"


@pytest.mark.long
def test_masks_start_from_a_saved_circuit(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path / "one", "logger=none"), verb="attribute")
    call(*settings(local, tmp_path / "two", "logger=none", f"mask.init_from={tmp_path}/one", "mask.schedule.lr=0"))
    one, two = (Circuit.load(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one.kept, two.kept)


@pytest.mark.long
def test_sigkill_twice_then_resume_is_bit_equal(local: Path, tmp_path: Path) -> None:
    """Killed at random steps of its middle half, a resumed run ends with the very masks of an unbroken one."""
    steps, draw = 60, random.Random()
    more = [f"mask.schedule.steps={steps}", "callbacks.checkpoint_every=2", "callbacks.probe_every=0", "logger=none"]
    more += ["callbacks.snapshot_every=1", "trainer.accumulate_grad_batches=2"]
    call(*settings(local, tmp_path / "whole", *more))
    broken = tmp_path / "broken"
    masks = broken / "masks"
    first = draw.randrange(steps // 4, 3 * steps // 4 - 1)
    kills = [first, draw.randrange(first + 1, 3 * steps // 4)]
    resume: list[str] = []
    for kill in [*kills, None]:
        log = tmp_path / f"killed_at_{kill}.log"
        process = start(log, *(resume or settings(local, broken, *more)))
        if kill is None:
            finished(process, log)
            break
        deadline = time.monotonic() + 120
        while not (masks / f"step_{kill:06d}.safetensors").exists():
            assert process.is_alive() and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        checkpoints = sorted((broken / "checkpoints").glob("step_*.ckpt"))
        assert int(checkpoints[-1].stem.split("_")[1]) < steps
        resume = [f"resume={broken}"]
    last = f"step_{steps:06d}.safetensors"
    whole, resumed = (load_file(tmp_path / run / "masks" / last)["log_alpha"] for run in ("whole", "broken"))
    assert torch.equal(whole, resumed), f"killed at {kills}"
    assert torch.equal(Circuit.load(tmp_path / "whole").kept, Circuit.load(broken).kept)
    histories = [json.loads((tmp_path / run / "history.json").read_text())["rows"] for run in ("whole", "broken")]
    assert histories[0] == histories[1]


BAD = {
    "pairs without a file": (["task.build.path=???"], "task.build.path has no value"),
    "missing pairs": (["task.build.path=missing.jsonl"], "missing.jsonl"),
    "missing model": (["model.path=missing"], "config.json"),
    "rounded masks": (["trainer.precision=bf16-true"], "would round the masks"),
    "missing function": (["objective.loss.path=cli.nowhere"], "cli.nowhere does not exist or cannot be imported"),
    "settings that do not go together": (
        ["task.build._partial_=false"],
        "does not take these settings (jsonl() missing",
    ),
    "no such device": (["trainer.accelerator=mps"], "Trainer does not take these settings ("),
    "missing adapter": (["adapter=peft", "adapter.path=missing"], "adapter 'missing'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_get_one_sentence(
    name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, words = BAD[name]
    assert words in failure(capsys, *settings(local, tmp_path, "logger=none", *more))
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "train.log"}


ROW = {"clean": "w1 w2 w3", "corrupted": "w4 w5 w6", "answer": " w7", "split": "train"}
BAD_ROWS = {
    "malformed": ('{"clean": "w1', "pairs.jsonl:2"),
    "missing field": ('{"clean": "w1 w2"}', "pairs.jsonl:2"),
    "length mismatch": (json.dumps({**ROW, "corrupted": "w4 w5"}), "clean has 3 tokens, corrupted 2"),
    "answer equals wrong answer": (json.dumps({**ROW, "wrong_answer": " w7"}), "pairs.jsonl:2"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named(name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, words = BAD_ROWS[name]
    file = tmp_path / "pairs.jsonl"
    good = (local / "pairs.jsonl").read_text().splitlines()
    file.write_text("\n".join([good[0], row, *good[1:]]))
    out = tmp_path / "out"
    message = failure(capsys, *settings(local, out, "logger=none", f"task.build.path={file}"))
    assert words in message and "pairs.jsonl:2" in message
    assert {p.name for p in out.iterdir()} <= {".hydra", "train.log"}


def test_bad_rows_are_left_out_where_that_is_asked_for(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [row for row, _ in BAD_ROWS.values()]
    file.write_text("\n".join([(local / "pairs.jsonl").read_text().rstrip(), *rows]))
    words = settings(local, tmp_path / "out", "logger=none", "callbacks=none", f"task.build.path={file}")
    message = failure(capsys, *words, verb="attribute")
    assert "4 of 40 rows cannot be used" in message and message.endswith("task.build.drop_bad=true")
    call(*words, "task.build.drop_bad=true", verb="attribute")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["n_pairs"] == 12
    assert "4 of 40 rows are left out" in (tmp_path / "out" / "attribute.log").read_text()


def test_a_file_without_training_pairs(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text((local / "pairs.jsonl").read_text().replace('"train"', '"test"'))
    message = failure(capsys, *settings(local, tmp_path / "out", "logger=none", f"task.build.path={file}"))
    assert "no train pairs" in message and 'lines with "split": "train"' in message and "n_train" not in message


def test_nan_loss_stops_the_run_and_leaves_nothing(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["mask.init=equal", "mask.init_from=null", "objective.loss.path=cli.not_a_number", "method=eap"]
    message = failure(capsys, *settings(local, tmp_path, "logger=wandb_offline", *more))
    assert "the loss is nan at step 1" in message and "mask.schedule.lr" not in message  # no step had been taken
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "train.log"}


def test_weights_that_are_not_numbers_are_named(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(local / "model")
    shutil.copytree(local / "model", tmp_path / "model")
    words = settings(local, tmp_path / "out", "logger=none")
    model = f"model.path={tmp_path}/model"
    for verb, word, number in (
        ("train", model, torch.nan),
        ("finetune", model, torch.inf),
        ("compare", f"tuned={tmp_path}/model", -torch.inf),
    ):
        with torch.no_grad():
            broken.transformer.wpe.weight[2, 3] = number
        broken.save_pretrained(tmp_path / "model")
        capsys.readouterr()  # saving shows progress
        message = failure(capsys, *words, word, verb=verb)
        assert "transformer.wpe.weight holds NaN or infinite values" in message
        assert {p.name for p in (tmp_path / "out").iterdir()} <= {".hydra", *(f"{v}.log" for v in VERBS)}


def test_unsupported_architecture_is_refused_by_name(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.for_model("rwkv", hidden_size=16, num_hidden_layers=1, vocab_size=41)
    config.save_pretrained(tmp_path / "rwkv")
    message = failure(capsys, *settings(local, tmp_path / "out", "logger=none", f"model.path={tmp_path}/rwkv"))
    assert "'rwkv'" in message and "model/README.md" in message


@pytest.mark.long
def test_checkpoint_of_another_run_is_refused(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(*settings(local, tmp_path / "one", "logger=none", "trainer.max_steps=4"))
    checkpoint = tmp_path / "one" / "checkpoints" / "last.ckpt"
    message = failure(capsys, *settings(local, tmp_path / "two", "logger=none", "seed=5", f"ckpt_path={checkpoint}"))
    assert "seed: 0 then, 5 now" in message
    checkpoint.write_bytes(b"damaged")
    message = failure(capsys, *settings(local, tmp_path / "two", "logger=none", f"ckpt_path={checkpoint}"))
    assert "last.ckpt" in message
    assert {p.name for p in (tmp_path / "two").iterdir()} <= {".hydra", "train.log"}


def test_unwritable_output(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in failure(capsys, *settings(local, tmp_path / "file" / "out", "logger=none"))


def test_verbs_are_listed_for_who_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["circuitlit", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    status, listed, nothing = told("--help")
    assert status == 0 and "\n  train " in listed and not nothing
    assert told() == (2, "", listed)
    assert told("trian")[0] == "error: there is no verb trian; did you mean train?"
    assert told("task=ioi")[0] == "error: there is no verb task=ioi; python -m circuitlit --help lists all"


@pytest.mark.parametrize("out", ["nobody_reads", "/dev/full"])
def test_words_that_go_nowhere_make_no_traceback(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if out == "nobody_reads":
        read, number = os.pipe()
        os.close(read)
    else:
        number = os.open(out, os.O_WRONLY)
    monkeypatch.setattr(sys, "argv", ["circuitlit", "--help"])
    with open(number, "w") as stream, pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, "stdout", stream)
        main()
    full = "error: standard output: No space left on device; make room"
    assert stop.value.code == (full if out == "/dev/full" else 1)


def test_ctrl_c_at_import_makes_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("circuitlit.cli.main._quiet", pressed)
    monkeypatch.setattr(sys, "argv", ["circuitlit", "attribute"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and capsys.readouterr().err == "stopped before anything was made\n"


@pytest.mark.long
def test_the_baseline_is_the_best_of_those_tried(local: Path, tmp_path: Path) -> None:
    more = ["evaluate.baselines=[eap,eap_ig]", "method.score.draws=0", "logger=none", "mask.schedule.steps=2"]
    call(*settings(local, tmp_path, *more, "callbacks.probe_every=0"))
    result = json.loads((tmp_path / "result.json").read_text())
    tried = result["attributions_tried"]
    assert {row["label"] for row in tried} >= {"eap, signed", "eap_ig, absolute", "mask_gradients, absolute"}
    assert len(tried) == 6 and all(row["seconds"] > 0 for row in tried)
    assert tried[0]["val_kl"] == min(row["val_kl"] for row in tried)
    assert result["attribution"]["label"] == tried[0]["label"]
