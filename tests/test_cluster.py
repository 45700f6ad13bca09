"""Launchers without a cluster: Slurm's scripts with stand-ins, torchrun on two nodes, submitit with a requeue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli import call, settings
from test_ranks import ENVIRONMENT, LONG, ROOT, children_of, end, masks, wait_for

from circuitlit.cli.ranks import free_port
from circuitlit.graph import Circuit

FOUR = ["strategy=ddp", "strategy.options.devices=2", "trainer.accelerator=cpu", "data.batch_size=1", "logger=none"]
ONE = ["strategy=cpu", "trainer.accumulate_grad_batches=4", "data.batch_size=1", "logger=none"]


def stand_in(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", ["slurm.sbatch", "sweep.sbatch"])
def test_a_job_that_is_stopped_is_queued_again_and_goes_on(script: str, tmp_path: Path) -> None:
    """Slurm's commands and the run are stand-ins; the script is a copy elsewhere, as Slurm makes it."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "spool" / "script").write_text((ROOT / "launch" / script).read_text())
    run = 'd=$(sed "s/.*hydra.run.dir=\\([^ ]*\\).*/\\1/" <<<"$*"); mkdir -p $d/.hydra; touch $d/.hydra/config.yaml\n'
    run += 'echo "$@" >>words; [[ $* == *resume=* ]] && exit; trap "touch saved; exit 143" TERM; touch begun\n'
    run += "while :; do sleep .02; done"
    stand_in(tmp_path / "bin", "python", run)
    stand_in(tmp_path / "bin", "srun", 'shift; exec "$@"')
    stand_in(tmp_path / "bin", "scontrol", '[[ $1 == requeue ]] && echo "$2" >>requeued')
    names = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CIRCUITLIT"))}
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "17", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    command = ["bash", str(tmp_path / "spool" / "script"), "task=sva"]
    first = subprocess.Popen(command, env=names | job)
    wait_for(first, tmp_path / "begun")  # type: ignore[arg-type]
    first.terminate()
    assert first.wait(20) == 143 and (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").read_text() == "17\n"
    assert subprocess.run(command, env=names | job, timeout=20).returncode == 0
    before, after = (line.split() for line in (tmp_path / "words").read_text().splitlines())
    assert after == [*before, f"resume={next(w for w in before if w.startswith('hydra.run.dir'))[14:]}"]


def node(place: int, port: int, words: list[str]) -> subprocess.Popen[str]:
    """One of two nodes of two processes, as launch/slurm.sbatch starts them."""
    torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", f"--node-rank={place}"]
    torchrun += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    command = [sys.executable, "-m", *torchrun, "train.py", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**ENVIRONMENT, "CIRCUITLIT_RUN_ID": "two-nodes"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)


@pytest.mark.slow
def test_two_nodes_of_two_processes_learn_the_masks_of_one_and_go_on_as_one(local: Path, tmp_path: Path) -> None:
    """One pair for each of four processes; the checkpoint at step 8 is gone on with by one process."""
    one, four, fewer = tmp_path / "one", tmp_path / "four", tmp_path / "fewer"
    call(*settings(local, one, *ONE))
    port, words = free_port(), settings(local, four, *FOUR)
    for process in [node(place, port, words) for place in (0, 1)]:
        code, _, errors = end(process)
        assert code == 0, errors
    for step in (4, 8, 12):
        torch.testing.assert_close(masks(four, step), masks(one, step), rtol=1e-5, atol=1e-5)
    assert torch.equal(Circuit.load(one).kept, Circuit.load(four).kept)
    call(*settings(local, fewer, *ONE, f"ckpt_path={four}/checkpoints/step_000008.ckpt"))
    torch.testing.assert_close(masks(fewer), masks(one), rtol=1e-5, atol=1e-5)
    assert torch.equal(Circuit.load(one).kept, Circuit.load(fewer).kept)


def submitted(local: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A sweep of one run by submitit's local executor."""
    words = [word for word in settings(local, out, "logger=none", *more) if not word.startswith("hydra.run.dir")]
    command = [sys.executable, "-m", "circuitlit", "train", "-m", "hydra/launcher=submitit_local"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command += [f"hydra.sweep.dir={out}", *words, "seed=3"]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)


@pytest.mark.slow
def test_a_job_of_submitit_s_is_queued_again_and_goes_on(local: Path, tmp_path: Path) -> None:
    """The signal ahead of a job's end saves the step; the job that is queued again has the masks of an unbroken run."""
    pytest.importorskip("submitit")
    process = submitted(local, tmp_path / "jobs", *LONG)
    wait_for(process, tmp_path / "jobs" / "0" / "checkpoints" / "step_000010.ckpt")
    controller = children_of(process)[0]
    task = int(Path(f"/proc/{controller}/task/{controller}/children").read_text().split()[0])
    os.kill(task, signal.SIGUSR2)
    code, _, errors = end(process)
    assert code == 0, errors
    logs = "".join(path.read_text() for path in (tmp_path / "jobs" / ".submitit").rglob("*.err"))
    logs += "".join(path.read_text() for path in (tmp_path / "jobs" / ".submitit").rglob("*.out"))
    assert "Requeued job" in logs and "saved; go on with" in logs
    result = json.loads((tmp_path / "jobs" / "0" / "result.json").read_text())
    assert (result["steps"], result["seed"]) == (400, 3)
    call(*settings(local, tmp_path / "whole", "logger=none", *LONG, "seed=3"))
    found, whole = (masks(tmp_path / name, 400) for name in ("jobs/0", "whole"))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_in_a_job_of_submitit_s_is_said(local: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    code, _, errors = end(submitted(local, tmp_path, f"model.path={tmp_path}/nowhere"))
    assert code == 1 and "error: model.path=" in errors and "Traceback" not in errors
