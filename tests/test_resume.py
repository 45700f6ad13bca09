"""Going on with a stopped run: its own settings and nothing else, and what Ctrl-C and SIGTERM leave."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from cli import call, failure, settings
from forked import start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from circuitlit.cli import stopping
from circuitlit.errors import Stopped
from circuitlit.graph import Circuit

STEPS = 12
LONG = ["mask.schedule.steps=3000", "callbacks.checkpoint_every=5", "callbacks.probe_every=0", "logger=none"]


def masks(folder: Path, step: int = STEPS) -> torch.Tensor:
    return load_file(folder / "masks" / f"step_{step:06d}.safetensors")["log_alpha"]


def until(process: BaseProcess, log: Path, words: str) -> None:
    """Wait until a process has printed something."""
    deadline = time.monotonic() + 120
    while not (log.exists() and words in log.read_text()):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.01)


def ended(process: BaseProcess, log: Path) -> tuple[int | None, list[str]]:
    """A process's status, and the lines that say how it ended."""
    process.join(120)
    return process.exitcode, [line for line in log.read_text().splitlines() if line.startswith("stopped")]


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.fixture(scope="module")
def whole(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    out = tmp_path_factory.mktemp("resume") / "whole"
    call(*settings(local, out, "logger=none"))
    return out


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """The same run as it was at step 8, with masks of a later step that no checkpoint has."""
    out = copy_of(whole, tmp_path / "broken")
    for name in ("result.json", "report.html", "circuit.json", "circuit.safetensors", "history.json", "evolution.json"):
        (out / name).unlink()
    shutil.copy(out / "checkpoints" / "step_000008.ckpt", out / "checkpoints" / "last.ckpt")
    (out / "checkpoints" / "step_000012.ckpt").unlink()
    return out


@pytest.mark.long
def test_resume_needs_nothing_but_the_folder(local: Path, whole: Path, broken: Path) -> None:
    own = {path.name: path.read_bytes() for path in (broken / ".hydra").iterdir()}
    call(f"resume={broken}")
    assert torch.equal(masks(broken), masks(whole))
    assert torch.equal(Circuit.load(broken).kept, Circuit.load(whole).kept)
    rows = [json.loads((folder / "history.json").read_text())["rows"] for folder in (whole, broken)]
    assert rows[0] == rows[1]
    assert {path.name: path.read_bytes() for path in (broken / ".hydra").iterdir()} == own
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, broken)]
    assert all(results[0][key] == results[1][key] for key in ("kl", "accuracy", "steps", "stages", "status"))


@pytest.mark.long
def test_a_finished_run_is_said_to_be_finished(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(f"resume={broken}", "trainer.max_steps=10")
    assert json.loads((broken / "result.json").read_text())["steps"] == 10
    call(f"resume={broken}", "evaluate.controls=2")
    result = (broken / "result.json").read_bytes()
    assert json.loads(result)["steps"] == STEPS and json.loads(result)["random"]["n_circuits"] == 2
    capsys.readouterr()
    call(f"resume={broken}")
    assert "is finished: " in capsys.readouterr().out and (broken / "result.json").read_bytes() == result


def test_a_run_without_a_checkpoint_begins_anew(whole: Path, broken: Path) -> None:
    shutil.rmtree(broken / "checkpoints")
    call(f"resume={broken}")
    assert torch.equal(masks(broken), masks(whole))


def test_as_many_pairs_a_step_are_no_difference(broken: Path) -> None:
    call(f"resume={broken}", "data.batch_size=2", "trainer.accumulate_grad_batches=2", "logger=csv", "strategy=cpu")
    assert json.loads((broken / "result.json").read_text())["steps"] == STEPS
    assert list((broken / "csv").rglob("metrics.csv"))


OTHER = {
    "sparsity": (["sparsity.target=0.9"], "sparsity.target: 0.8 then, 0.9 now"),
    "mask family": (["mask=uniform_gradient"], "mask."),
    "learning rate": (["mask.schedule.lr=0.2"], "mask.schedule.lr: 0.3 then, 0.2 now"),
    "length": (["mask.schedule.steps=24"], "mask.schedule.steps: 12 then, 24 now"),
    "objective": (["objective=cross_entropy"], "objective."),
    "ablation": (["ablation=zero"], "ablation.kind: interchange then, zero now"),
    "data": (["task.build.path={other}/pairs.jsonl"], "task.build.path"),
    "model": (["model.path={other}/model"], "model.path"),
    "adapter": (["adapter=peft", "adapter.path={other}"], "adapter.path"),
    "seed": (["seed=1"], "seed: 0 then, 1 now"),
    "method": (["method=eap"], "method."),
    "clipping": (["+trainer.gradient_clip_val=1"], "trainer.gradient_clip_val: not set then, 1 now"),
    "batch size": (["data.batch_size=8"], "pairs in a step"),
}


BOTH_WAYS = [("resume", name) for name in OTHER] + [("ckpt_path", name) for name in ("sparsity", "model", "batch size")]


@pytest.mark.parametrize("how,name", BOTH_WAYS)
def test_a_difference_is_named_before_anything_is_loaded(
    how: str, name: str, local: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, words = OTHER[name]
    other = copy_of(local, tmp_path / "other")
    more = [word.replace("{other}", str(other)) for word in more]
    if how == "resume":
        out = copy_of(whole, tmp_path / "out")
        (out / "result.json").unlink()
        message = failure(capsys, f"resume={out}", *more)
        assert masks(out).equal(masks(whole)) and (out / "checkpoints" / "last.ckpt").exists()
    else:
        checkpoint = whole / "checkpoints" / "step_000008.ckpt"
        message = failure(capsys, *settings(local, tmp_path / "out", "logger=none", *more, f"ckpt_path={checkpoint}"))
        assert {p.name for p in (tmp_path / "out").iterdir()} <= {".hydra", "train.log"}
    assert words in message and "other settings" in message


@pytest.mark.long
@pytest.mark.parametrize("what", ["training pairs", "weights"])
def test_a_file_that_changed_in_its_place_is_named(
    what: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, out = copy_of(local, tmp_path / "home"), tmp_path / "out"
    call(*settings(home, out, "logger=none", "trainer.max_steps=8"))
    if what == "weights":
        model = AutoModelForCausalLM.from_pretrained(home / "model")
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.bias[0] += 1
        model.save_pretrained(home / "model")
    else:
        lines = (home / "pairs.jsonl").read_text().splitlines()
        (home / "pairs.jsonl").write_text("\n".join([*lines[3:], *lines[:3]]))
    assert f"{what}: " in failure(capsys, f"resume={out}", "trainer.max_steps=12")


BAD = {
    "no run": (["resume=nowhere"], "nowhere/.hydra/config.yaml is not readable"),
    "several": (["-m", "resume=OUT", "seed=0,1"], "leave -m out"),
    "another folder": (["resume=OUT", "hydra.run.dir=elsewhere"], "leave hydra.run.dir out"),
    "overwriting": (["resume=OUT", "overwrite=true"], "keep one of the two"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_ways_to_resume_get_one_sentence(name: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, words = BAD[name]
    assert words in failure(capsys, *(word.replace("OUT", str(whole)) for word in more))
    assert "is a run of train, not of finetune" in failure(capsys, f"resume={whole}", verb="finetune")


@pytest.mark.long
def test_a_resumed_run_has_the_wandb_run_that_it_had(local: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run's folder, 1=2"  # a name that Hydra would not take as it is
    run = f"hydra.run.dir='{out}'".replace("run's", "run\\'s")
    words = [word for word in settings(local, out, "logger=wandb_offline") if "hydra.run.dir" not in word]
    call(*words, run, "trainer.max_steps=6", "callbacks.checkpoint_every=3")
    call(f"resume={out}", "trainer.max_steps=8")
    ids = [path.name.split("-", 3)[3] for path in (out / "wandb").glob("offline-run-*")]
    assert len(ids) == 2 and len(set(ids)) == 1
    assert json.loads((out / "result.json").read_text())["steps"] == 8


@pytest.mark.long
@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_a_resumed_run_logs_every_step_as_the_unbroken_one_does(verb: str, local: Path, tmp_path: Path) -> None:
    def losses(version: int) -> dict[str, str]:
        with open(tmp_path / "csv" / f"version_{version}" / "metrics.csv") as file:
            return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}

    own = ["logger=csv", "trainer.log_every_n_steps=1", "callbacks.checkpoint_every=8"]
    call(*settings(local, tmp_path, *own, "tune.steps=12", "tune.probe_every=0"), verb=verb)
    (tmp_path / "result.json").unlink()  # as it was at its last checkpoint
    call(f"resume={tmp_path}", verb=verb)
    whole, rest = losses(0), losses(1)
    assert list(rest) == ["8", "9", "10", "11"] and len(whole) == STEPS
    assert {step: float(loss) for step, loss in rest.items()} == pytest.approx({s: float(whole[s]) for s in rest})


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_saves_and_says_the_command_that_goes_on(
    number: signal.Signals, local: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(log, *settings(local, out, *LONG, "callbacks.checkpoint_every=0"))
    deadline = time.monotonic() + 120
    while not (out / "masks" / "step_000008.safetensors").exists():
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    code, lines = ended(process, log)
    assert code == 128 + number and len(lines) == 1 and "Traceback" not in log.read_text(), log.read_text()
    how = "Ctrl-C" if number == signal.SIGINT else "a signal"
    found = re.fullmatch(rf"stopped by {how} at step (\d+); saved; go on with: (.*)", lines[0])
    assert found is not None, lines
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == int(found[1]) and not (out / "run.lock").exists()
    words = shlex.split(found[2])
    assert words[:4] == ["python", "-m", "circuitlit", "train"]
    call(*words[4:], f"trainer.max_steps={int(found[1]) + 5}")
    assert json.loads((out / "result.json").read_text())["steps"] == int(found[1]) + 5


PHASES = {
    "attribution": (
        "Scoring",
        ["method.score.steps=1000000"],
        "scoring 38 edges by mask_gradients ...; all of it remains",
    ),
    "evaluation": (
        "Evaluating",
        ["evaluate.controls=1000000"],
        "evaluating on 12 held-out pairs; training is done, the evaluation remains",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_elsewhere_ends_at_once_and_says_what_remains(phase: str, local: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words, more, said = PHASES[phase]
    process = start(log, *settings(local, out, "logger=none", *more))
    until(process, log, words)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    code, lines = ended(process, log)
    assert code == 130 and "Traceback" not in log.read_text(), log.read_text()
    assert lines and lines[0].startswith("stopped by Ctrl-C while ")
    assert said.split("; ")[1] in lines[0] and lines[0].endswith(f"train resume={out}")


def test_a_signal_beside_the_results_says_what_is_there(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def stopped(name: str) -> str:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(name, signalled)
            call(*settings(local, tmp_path), verb="attribute")
        assert stop.value.code == 130
        return capsys.readouterr().err.splitlines()[-1]

    assert stopped("circuitlit.evaluate.found.FoundCircuit.save") == "stopped by Ctrl-C; nothing of it is kept"
    assert {path.name for path in tmp_path.iterdir()} <= {".hydra", "attribute.log"}
    said = stopped("circuitlit.cli.finish.write_page")  # the same command again is not refused
    command = f"python -m circuitlit report run={tmp_path}"
    assert said == f"stopped by Ctrl-C; its result is kept, the page remains; go on with: {command}"
    call(*shlex.split(command)[4:], f"hydra.run.dir={tmp_path}/report", verb="report")
    assert (tmp_path / "report.html").exists()


def test_a_run_that_was_stopped_at_its_page_gets_it(whole: Path, tmp_path: Path) -> None:
    out = copy_of(whole, tmp_path / "run")
    (out / "report.html").unlink()
    before = (out / "result.json").stat().st_mtime_ns
    call(f"resume={out}")
    assert (out / "report.html").exists() and (out / "result.json").stat().st_mtime_ns == before


class _Dropped:
    """Gets a signal where Python drops errors."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_comes_where_errors_are_dropped_is_not_lost() -> None:
    with pytest.raises(Stopped) as stop, stopping.listening():
        _Dropped()
        time.sleep(5)
    assert stop.value.number == signal.SIGTERM


@pytest.mark.parametrize("place", ["circuitlit.cli.checks.check", "circuitlit.cli.arguments.readable"])
def test_an_error_in_clearing_up_after_a_signal_is_no_error(
    place: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            raise AttributeError

    monkeypatch.setattr(place, fails)
    with stopping.listening(), pytest.raises(SystemExit) as stop:
        call(*settings(local, tmp_path))
    assert stop.value.code == 143 and capsys.readouterr().err.startswith("stopped ")


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once(local: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(log, *settings(local, out, *LONG, "callbacks.snapshot_every=1"))
    deadline = time.monotonic() + 120
    while not (out / "masks" / "step_000002.safetensors").exists():
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # as if a step took long
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    code, _ = ended(process, log)
    assert code == 130
