"""A run's folder: one process at a time, nothing of another run lost or mixed in, names that do not collide."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli import call, failure, settings
from forked import finished, start
from hydra.core.override_parser.overrides_parser import OverridesParser

from circuitlit import lock
from circuitlit.cli.arguments import readable
from circuitlit.cli.folder import new_run_id
from circuitlit.cli.resume import quoted
from circuitlit.errors import UserError
from circuitlit.lock import claimed

LONG = ["mask.schedule.steps=3000", "callbacks.checkpoint_every=5", "callbacks.probe_every=0", "logger=none"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.long
def test_a_second_start_in_a_live_folder_is_refused_and_changes_nothing(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    first = start(log, *settings(local, out, *LONG))
    assert first.pid is not None
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoints" / "step_000010.ckpt").exists():
            assert first.is_alive() and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGSTOP)  # alive, and writing nothing
        time.sleep(0.1)
        before = contents(out)
        for more, words in (
            (["seed=1", "overwrite=true"], f"is in use by process {first.pid} on "),
            ([f"resume={out}"], f"is in use by process {first.pid} on "),
            (["sparsity.target=95"], "did you mean 0.95"),
            (["model.path=missing"], "neither a folder with a config.json"),
        ):
            given = more if more[0].startswith("resume") else settings(local, out, "logger=none", *more)
            assert words in failure(capsys, *given)
            assert contents(out) == before
        for verb in ("evaluate", "attribute"):
            more = ["logger=none", *([f"circuit={out}"] if verb == "evaluate" else [])]
            assert "in use by" in failure(capsys, *settings(local, out, *more), verb=verb)
            assert {name: file for name, file in contents(out).items() if name in before} == before
    finally:
        first.kill()
        first.join()
    assert (out / lock.NAME).exists()  # left behind
    call(f"resume={out}", "trainer.max_steps=20")
    assert json.loads((out / "result.json").read_text())["steps"] >= 20 and not (out / lock.NAME).exists()


def test_a_failing_command_takes_away_only_what_it_made(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    failure(capsys, *settings(local, tmp_path, "logger=none", "model.path=missing"))
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "train.log", "notes.txt", "masks"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "out": "/out' cannot be written (it is no folder); choose another folder: hydra.run.dir=DIR",
        "link": "/link' cannot be written (a link that leads nowhere); choose another folder",
        "log": "/log/train.log' cannot be written (Is a directory); choose another folder",
        "claim": "/claim/run.lock' cannot be used (Is a directory); give access to it, or name another",
    }.items(),
)
def test_a_folder_that_cannot_be_written_is_named(
    name: str, words: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "log" / "train.log").mkdir(parents=True)
    (tmp_path / "claim" / lock.NAME).mkdir(parents=True)
    assert words in failure(capsys, *settings(local, tmp_path / name))
    assert (tmp_path / "out").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_files_that_may_not_be_replaced_are_named(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "step_000000.safetensors")

    (tmp_path / "masks").mkdir()
    monkeypatch.setattr("circuitlit.cli.folder.shutil.rmtree", denied)
    said = failure(capsys, *settings(local, tmp_path, "overwrite=true"))
    assert f"in {tmp_path} cannot be taken away (Permission denied: step_000000.safetensors); choose another" in said


def test_a_working_directory_that_is_gone_is_told(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = failure(capsys, *settings(local, tmp_path / "out"))
    assert said == "error: the working directory does not exist any more; change into one that does"


def test_what_others_save_meanwhile_beside_their_own_files_stays(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    def refused(*args: object, **settings: object) -> None:
        (tmp_path / "more.txt").write_text("mine, too")
        (tmp_path / "circuit.json").write_text("half")
        raise UserError("no such circuit")

    monkeypatch.setattr("circuitlit.run.train.follow_masks", refused)
    assert "no such circuit" in failure(capsys, *settings(local, tmp_path, "logger=none"))
    assert {path.name for path in tmp_path.glob("*.*")} <= {".hydra", "train.log", "notes.txt", "more.txt"}
    assert (tmp_path / "more.txt").exists()


def test_a_mistake_at_the_end_loses_nothing_that_is_finished(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*args: object) -> None:
        raise UserError("the server does not answer")

    for module in ("train", "trust"):
        monkeypatch.setattr(f"circuitlit.run.{module}.log_{'run' if module == 'train' else 'trust'}", refused)
    assert "does not answer" in failure(capsys, *settings(local, tmp_path / "run", "logger=none"))
    card = settings(local, tmp_path / "card", "logger=none", f"circuit={tmp_path}/run", "trust.errors.pairs=null")
    assert "does not answer" in failure(capsys, *card, "trust.only=[preserved,errors]", verb="trust")
    kept = {path.name for path in tmp_path.rglob("*.*")}
    assert {"result.json", "circuit.safetensors", "trust.json", "trust.html", "errors.json"} <= kept


def test_a_full_disk_is_told_and_nothing_is_half_written(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))  # less than result.json takes
    try:
        said = failure(capsys, *settings(local, tmp_path, "logger=none", "evaluate.controls=3"), verb="attribute")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said.startswith("error: no room is left to write the run's files; make room")
    names = {path.name for path in tmp_path.iterdir()}
    assert "circuit.safetensors" in names and not any(name.endswith(".part") for name in names)


@pytest.mark.long
@pytest.mark.parametrize("verb", ["train", "attribute", "evaluate"])
def test_a_used_folder_is_refused_or_cleared_when_told_to(
    verb: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*settings(local, tmp_path, "logger=csv", "mask.schedule.steps=20", "callbacks.checkpoint_every=20"))
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    own = [f"circuit={tmp_path}"] if verb == "evaluate" else ["mask.schedule.steps=8"]
    again = settings(local, tmp_path, "logger=none", "seed=3", *own)
    message = failure(capsys, *again, verb=verb)
    assert "holds a run" in message and "overwrite=true" in message and "hydra.run.dir" in message
    assert ("resume=" in message) == (verb == "train")
    assert {name: file for name, file in contents(tmp_path).items() if name in before} == before
    failure(capsys, *again, "overwrite=true", "model.path=missing", verb=verb)  # a mistake loses nothing
    assert {name: file for name, file in contents(tmp_path).items() if name in before} == before
    call(*again, "overwrite=true", verb=verb)
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 3
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / "csv").exists()
    if verb != "train":
        assert not (tmp_path / "masks").exists() and not (tmp_path / "evolution.json").exists()
        return
    assert json.loads((tmp_path / "evolution.json").read_text())["steps"] == [0, 4, 8]
    call(f"run={tmp_path}", f"hydra.run.dir={tmp_path / 'again'}", verb="timeline")
    assert json.loads((tmp_path / "evolution.json").read_text())["steps"] == [0, 4, 8]
    import torch

    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        "last.ckpt",
        "step_000004.ckpt",
        "step_000008.ckpt",
    }


@pytest.mark.parametrize("name", ["a\\b", "it's", "a\\'b\\", "two words"])
def test_a_folder_s_name_survives_being_quoted(name: str) -> None:
    word = readable("train", [f"hydra.run.dir={quoted(name)}"])[0]
    assert OverridesParser.create().parse_override(word).value() == name


def test_other_verbs_leave_a_run_s_settings_alone(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path, "logger=none"), verb="attribute")
    before = contents(tmp_path / ".hydra")
    assert {"config.yaml", "hydra.yaml", "overrides.yaml"} == set(before)
    call(f"run={tmp_path}", f"hydra.run.dir={tmp_path}", verb="report")
    assert contents(tmp_path / ".hydra") == before


def test_run_ids_differ_within_a_second_and_are_shared_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIRCUITLIT_RUN_ID", raising=False)
    ids = set()
    for _ in range(50):
        with new_run_id():
            ids.add(os.environ["CIRCUITLIT_RUN_ID"])
    assert len(ids) == 50 and "CIRCUITLIT_RUN_ID" not in os.environ
    monkeypatch.setenv("CIRCUITLIT_RUN_ID", "job-17")
    with new_run_id():
        assert os.environ["CIRCUITLIT_RUN_ID"] == "job-17"
    assert os.environ["CIRCUITLIT_RUN_ID"] == "job-17"


@pytest.mark.long
def test_runs_and_sweeps_that_start_at_once_have_folders_of_their_own(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIRCUITLIT_RUN_ID", raising=False)
    common = [s for s in settings(local, tmp_path, "logger=none", f"paths.runs={tmp_path}") if "hydra.run.dir" not in s]
    runs = [start(tmp_path / f"log{n}", *common, verb="attribute") for n in range(2)]
    runs += [start(tmp_path / f"log{n}", "-m", *common, "seed=0", verb="attribute") for n in (2, 3)]
    for number, run in enumerate(runs):
        finished(run, tmp_path / f"log{number}")
    assert len(list(tmp_path.glob("jsonl-local/*/result.json"))) == 2
    assert len(list(tmp_path.glob("sweeps/*/0/result.json"))) == 2


def marker(path: Path, host: str, pid: int, lease: float) -> None:
    """A claim as a process of another host leaves it."""
    path.write_text(f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken=0\nduration={lease!r}\n")


def test_a_claim_of_another_host_is_taken_over_when_nobody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 0.6)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    path = tmp_path / "lock"
    marker(path, "elsewhere", 1, 0.6)
    begun = time.monotonic()
    with claimed(path, "the folder"):
        assert time.monotonic() - begun >= 0.6 and f"pid={os.getpid()}" in path.read_text()
    assert not path.exists()


def test_a_claim_of_another_host_that_is_touched_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE", 5.0)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    path = tmp_path / "lock"
    marker(path, "elsewhere", 71, 5.0)
    with ThreadPoolExecutor(1) as pool:
        touched = pool.submit(lambda: (time.sleep(0.3), os.utime(path)))
        with (
            pytest.raises(UserError, match="the folder is in use by process 71 on elsewhere"),
            claimed(path, "the folder"),
        ):
            pass
        touched.result()
    assert "host=elsewhere" in path.read_text()


def test_a_cell_s_claim_is_waited_for(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []
    with ThreadPoolExecutor(1) as pool:

        def second() -> None:
            with claimed(path, "the cell", wait=True):
                order.append("second")

        with claimed(path, "the cell"):
            waiting = pool.submit(second)
            time.sleep(0.3)
            order.append("first")
        waiting.result()
    assert order == ["first", "second"]


def test_who_lost_its_claim_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "os", SimpleNamespace(_exit=ended.append, kill=os.kill, stat=os.stat))
    path = tmp_path / "lock"
    with claimed(path, "the folder"):
        path.unlink()
        marker(path, "elsewhere", 1, lock.LEASE)
        deadline = time.monotonic() + 5
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    assert ended == [1] and "host=elsewhere" in path.read_text()
