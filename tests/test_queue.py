"""Many runs on few devices: the queue, Hydra's launcher, parts of a study, and what survives a machine that is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli import call, failure, settings
from test_study import small

from circuitlit.cli import queue
from circuitlit.cli.queue import Ended, Job, work_off
from circuitlit.errors import Stopped
from circuitlit.store import Failure, Store

ROOT = Path(__file__).parent.parent


def shell(folder: Path, name: str, words: str, known_by: object = None) -> Job:
    return Job(name, ["sh", "-c", words], folder / f"{name}.txt", known_by)


def worked_off(folder: Path, jobs: list[Job], *places: str | None) -> dict[str, Any]:
    found = {}
    work_off(Store(folder / "ended"), jobs, places, lambda job, ended: found.update({job.name: ended}))
    return found


def test_the_next_command_takes_the_place_that_is_free(tmp_path: Path) -> None:
    """Two places, a command that waits for the three that follow each other on the other place."""
    words = f"echo $CUDA_VISIBLE_DEVICES >>{tmp_path}/"
    jobs = [shell(tmp_path, "long", f"while [ ! -e {tmp_path}/third ]; do sleep .02; done; {words}long")]
    jobs += [shell(tmp_path, name, f"{words}{name}") for name in ("first", "second", "third")]
    found = worked_off(tmp_path, jobs, "a", "b")
    assert [*found][:2] == ["first", "second"] and all(ended.status == 0 for ended in found.values())
    assert [(tmp_path / name).read_text() for name in ("long", "first", "second", "third")] == ["a\n", *["b\n"] * 3]
    assert {name: ended.device for name, ended in found.items()} == dict(long="a", first="b", second="b", third="b")


def test_what_has_ended_well_is_not_run_again(tmp_path: Path) -> None:
    jobs = [
        shell(tmp_path, "good", f"echo >>{tmp_path}/good"),
        shell(tmp_path, "missed", f"echo >>{tmp_path}/missed; exit 3"),
    ]
    jobs.append(shell(tmp_path, "bad", f"echo why; [ -e {tmp_path}/mended ]"))
    found = worked_off(tmp_path, jobs, None)
    assert (found["good"].status, found["missed"].status) == (0, 3)
    assert isinstance(found["bad"], Failure) and "ended with status 1: why (see" in found["bad"].error
    (tmp_path / "mended").touch()
    again = worked_off(tmp_path, jobs, None)
    assert again["good"] == found["good"] and again["bad"].status == 0
    assert (tmp_path / "good").read_text() == (tmp_path / "missed").read_text() == "\n"
    other = shell(tmp_path, "good", f"echo >>{tmp_path}/good", known_by="other settings")
    worked_off(tmp_path, [other], None)
    assert (tmp_path / "good").read_text() == "\n\n"


def test_a_queue_that_is_stopped_ends_its_commands(tmp_path: Path) -> None:
    """The first one's end is told; then the queue is stopped, the second one with it, and no other goes on."""

    def told(job: Job, found: object) -> None:
        raise Stopped(signal.SIGTERM)

    second = f"trap 'touch {tmp_path}/told; exit 0' TERM; touch {tmp_path}/runs; while :; do sleep .02; done"
    first = f"while [ ! -e {tmp_path}/runs ]; do sleep .02; done"
    third = f"sleep 60; touch {tmp_path}/third"
    jobs = [shell(tmp_path, str(place), words) for place, words in enumerate((first, second, third, third))]
    with pytest.raises(Stopped):
        work_off(Store(tmp_path / "ended"), jobs, [None, None], told)
    assert (tmp_path / "told").exists() and not (tmp_path / "third").exists()


def test_a_sweep_is_a_command_a_run(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[Job] = []

    def noted(store: Store, jobs: list[Job], places: list[str | None], told: Any) -> None:
        seen[:] = jobs
        assert places == [None] * 2
        for job in jobs:
            if store.known(job.name, job.known_by, Ended) is None and job.name != "1":
                store.made(job.name, job.known_by, Ended, lambda: Ended(status=0, seconds=1.0, device=None))
                told(job, Ended(status=0, seconds=1.0, device=None))

    def sweep(*more: str) -> None:
        call("-m", "hydra/launcher=packed", "hydra.launcher.each=2", f"hydra.sweep.dir={tmp_path}/a b", *words, *more)

    quick = settings(local, tmp_path, "logger=none", "mask.schedule.steps=2")
    words = [word for word in quick if not word.startswith("hydra.run.dir")]
    monkeypatch.setattr(queue, "devices", lambda: [None])
    monkeypatch.setattr(queue, "work_off", noted)
    sweep("seed=0,1")
    assert "2 runs in" in capsys.readouterr().out and [job.name for job in seen] == ["0", "1"]
    own = seen[1].command[2:]
    assert own[:2] == ["circuitlit", "train"] and "seed=1" in own and own[-1] == f"hydra.run.dir='{tmp_path}/a b/1'"
    assert not any(word.startswith(("hydra/launcher", "hydra.launcher", "hydra.sweep")) for word in own)
    call(*own[2:])
    sweep("seed=0,1")
    assert seen[1].command[4:] == [f"resume='{tmp_path}/a b/1'"]
    call(*seen[1].command[4:])
    assert "is finished" in capsys.readouterr().out
    said = failure(capsys, "-m", "hydra/launcher=packed", f"hydra.sweep.dir={tmp_path}/a b", *words, "seed=0,2")
    assert "holds a run with other settings" in said and "seed=1" in said
    said = failure(capsys, "-m", "hydra/launcher=packed", "hydra.launcher.each=0", *words, "seed=0,2")
    assert "hydra.launcher.each=0 is not a number of runs" in said


def begin(*words: str) -> subprocess.Popen[bytes]:
    """A command in a session of its own, like a machine that can be lost with all its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "circuitlit", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def lose(process: subprocess.Popen[bytes], when: Path, pattern: str) -> dict[str, int]:
    """Kill all of a command's processes once a file is there; what was there then, with the times of its making."""
    deadline = time.monotonic() + 400
    while not any(when.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return made_at(when)


def made_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


@pytest.mark.slow
def test_a_sweep_survives_its_machine(local: Path, tmp_path: Path) -> None:
    words = [word for word in settings(local, tmp_path, "logger=none") if not word.startswith("hydra.run.dir")]
    words = ["train", "-m", "hydra/launcher=packed", "hydra.launcher.each=2", f"hydra.sweep.dir={tmp_path}/s", *words]
    words += ["mask.schedule.steps=300", "seed=0,1,2", "callbacks.snapshot_every=1000"]
    before = lose(begin(*words), tmp_path / "s" / "ended", "*.json")
    assert 1 <= len(before) < 3
    assert begin(*words).wait(400) == 0
    after = made_at(tmp_path / "s" / "ended")
    assert len(after) == 3 and before.items() <= after.items()
    for seed in range(3):
        result = json.loads((tmp_path / "s" / str(seed) / "result.json").read_text())
        assert (result["seed"], result["steps"]) == (seed, 300)
    rate = json.loads((tmp_path / "s" / "packed.json").read_text())
    assert rate["runs"] == 3 - len(before) and rate["runs_an_hour"] == pytest.approx(
        3600 * rate["runs"] / rate["seconds"]
    )


@pytest.mark.slow
def test_a_study_survives_its_machine(local: Path, tmp_path: Path) -> None:
    """Two processes share the cells; all is killed after the first mask run. What they had finished stays."""
    words = ["study", *small(local, tmp_path / "lost", "logger=none"), "study.parts=2"]
    cells = tmp_path / "lost" / "cells"
    before = lose(begin(*words), cells, "*--learner--*.json")
    assert begin(*words).wait(400) == 0
    after = made_at(cells)
    assert before.items() <= after.items() and len(after) == 9 > len(before)
    call(*small(local, tmp_path / "whole", "logger=none"), verb="study")
    own, whole = (json.loads((tmp_path / name / "study.json").read_text())["methods"] for name in ("lost", "whole"))
    assert [row["kl"] for row in own] == [row["kl"] for row in whole]


@pytest.mark.slow
def test_a_trust_card_survives_its_machine(local: Path, tmp_path: Path) -> None:
    call(*settings(local, tmp_path / "run", "logger=none"))
    words = ["trust", *settings(local, tmp_path / "card", "logger=none"), f"circuit={tmp_path}/run"]
    before = lose(begin(*words), tmp_path / "card" / "trust", "*.json")
    assert begin(*words).wait(400) == 0
    after = made_at(tmp_path / "card" / "trust")
    assert before.items() <= after.items() and len(after) == 3 > len(before)
    assert json.loads((tmp_path / "card" / "trust.json").read_text())["trust"]


def test_a_study_starts_its_parts_and_sums_up(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places go round the GPUs; what a part has not made, the process that sums up makes."""
    seen: list[Job] = []

    def noted(_: Store, jobs: list[Job], places: list[str | None], told: Any) -> None:
        seen[:] = jobs
        assert places == ["3", "5", "3"]

    monkeypatch.setattr(queue, "devices", lambda: ["3", "5"])
    monkeypatch.setattr(queue, "work_off", noted)
    call(*small(local, tmp_path, "study.parts=3", "study.learners=[]"), verb="study")
    assert (tmp_path / "study.json").exists()
    for part, job in enumerate(seen):
        assert job.command[3] == "study" and job.command[-1] == f"study.part={part}" and "study.parts=3" in job.command
        assert f"hydra.run.dir='{tmp_path}'" in job.command


@pytest.mark.long
def test_a_cell_that_another_process_makes_is_left_to_it(local: Path, tmp_path: Path, capsys: Any) -> None:
    """A part makes its share and what nobody has begun; a cell that is claimed it neither waits for nor makes."""
    from circuitlit.lock import claimed_cell

    cells = tmp_path / "cells"
    few = ["study.seeds=[0]", "study.sparsities=[0.7]", "study.attributions=[mask_gradients]"]
    with claimed_cell(cells / "jsonl--learner--warm--0.7--seed0.json"):
        call(*small(local, tmp_path, *few, "study.parts=2", "study.part=0"), verb="study")
    names = {path.stem for path in cells.glob("*.json")}
    assert len(names) == 4 and "jsonl--learner--warm--0.7--seed0" not in names
    assert "4 cells are there" in capsys.readouterr().out
