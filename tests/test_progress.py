"""What a run says in a log: what it will take, a line at every twentieth, how far a long loop is."""

from __future__ import annotations

import io
import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from cli import call, settings

from circuitlit import progress
from circuitlit.discover import MaskLearner
from circuitlit.progress import CONSOLE, Clock, duration, phase, told


def lines(text: str, pattern: str) -> list[re.Match[str]]:
    return [found for line in text.splitlines() if (found := re.search(pattern, line))]


LINE = r"(\d+) %: step (\d+) of (\d+), loss (-?[\d.e-]+), (?:sparsity ([\d.]+), )?\d+ s left"


@pytest.mark.long
@pytest.mark.parametrize("bar", ["true", "false"])
def test_without_a_terminal_a_run_says_what_it_will_take_and_how_far_it_is(
    bar: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["logger=none", "mask.schedule.steps=40", f"callbacks.progress_bar={bar}", "callbacks.checkpoint_every=0"]
    call(*settings(local, tmp_path, *more))
    printed, logged = capsys.readouterr().out, (tmp_path / "train.log").read_text()
    for text in (printed, logged):
        found = lines(text, LINE)
        assert [int(line[2]) for line in found] == list(range(2, 41, 2))
        assert all(int(line[1]) == 100 * int(line[2]) // 40 and line[5] for line in found)
        (foretold,) = lines(text, r"about \d+ s from here on \(40 steps of ([\d.e-]+) s, \d+ s of evaluation\); (.*)$")
        assert float(foretold[1]) > 0 and re.fullmatch(r"[\d.]+ of [\d.]+ GiB of memory", foretold[2])
    assert printed.index("from here on") < printed.index("5 %: step 2 of 40") < printed.index("Evaluating")


def test_tuning_speaks_too(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["logger=none", "tune.steps=10", "adapter=lora", "tune.probe_every=0", "callbacks.checkpoint_every=0"]
    call(*settings(local, tmp_path, *more), verb="finetune")
    for text in (capsys.readouterr().out, (tmp_path / "finetune.log").read_text()):
        assert [int(line[2]) for line in lines(text, LINE)] == list(range(1, 11))


@pytest.mark.long
def test_the_timed_step_is_taken_back(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    more = ["logger=none", "trainer.accumulate_grad_batches=2"]
    call(*settings(local, tmp_path / "with", *more))
    rehearsed = []
    monkeypatch.setattr(MaskLearner, "rehearse", lambda self, *_: rehearsed.append(self))
    call(*settings(local, tmp_path / "without", *more))
    one, other = (load_file(tmp_path / run / "masks" / "step_000012.safetensors") for run in ("with", "without"))
    assert len(rehearsed) == 1 and torch.equal(one["log_alpha"], other["log_alpha"])


def test_a_run_that_does_not_fit_is_told_before_its_first_step(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("circuitlit.run.bench.foretold.room", lambda device: 2.0**10)
    call(*settings(local, tmp_path, "logger=none"))
    assert "lower data.batch_size" in capsys.readouterr().out


def test_long_loops_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Clock():
        assert list(told("abcdefgh", "letters", 8)) == list("abcdefgh")
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "letters: 3 of 8, 40 s left",
        "letters: 6 of 8, 16 s left",
    ]


def test_what_is_within_a_phase_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(now)))
    with progress.Clock():
        with progress.phase("outer", "One"):
            with progress.phase("first", "Two"):
                pass
            with progress.phase("second", "Three"):
                pass
        with progress.phase("last", "Four"):
            pass
        assert progress.times() == {
            "seconds": 6.0,
            "seconds_by_phase": {"first": 1.0, "second": 1.0, "outer": 5.0, "last": 1.0},
        }


def test_durations_in_words() -> None:
    assert [duration(s) for s in (0.2, 59, 61, 3599, 7500)] == ["0 s", "59 s", "1 min 1 s", "59 min 59 s", "2 h 5 min"]


def test_brackets_in_names_and_folders_are_letters(capsys: pytest.CaptureFixture[str]) -> None:
    with Clock(), phase("load", "Loading a[/b] and [dim]c"):
        CONSOLE.print("runs/[dim]x")
    printed = capsys.readouterr().out
    assert printed.startswith("Loading a[/b] and [dim]c ...\nruns/[dim]x\n")


def test_letters_that_a_terminal_does_not_know_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit):
        call("task=é", verb="train")
    CONSOLE.print("läuft")
    terminal.flush()
    assert b"l\\xe4uft" in terminal.buffer.getvalue()  # type: ignore[attr-defined]
