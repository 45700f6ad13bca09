"""Two processes on the CPU (gloo): the masks of one process, one writer, killed and resumed, stopped by a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import same_masks
import torch
import torch.distributed as dist
from cli import call, failure, settings
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from test_engines import in_two_processes

from circuitlit.cli.build import build_subject, build_workbench
from circuitlit.cli.learn import learn
from circuitlit.cli.ranks import anyone, free_port
from circuitlit.graph import Circuit

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TWO = ["strategy=ddp", "strategy.options.devices=2", "trainer.accelerator=cpu"]
ONE = ["strategy=cpu", "trainer.accumulate_grad_batches=2"]
LONG = ["mask.schedule.steps=400", "callbacks.checkpoint_every=5", "callbacks.probe_every=0"]


def start(local: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A run in a session of its own, so that `end` leaves none of its processes behind."""
    command = [sys.executable, "train.py", *settings(local, out, *more)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)


def end(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str, str]:
    """Wait for a run; its status, output and errors."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, out, err


def masks(folder: Path, step: int = 12) -> torch.Tensor:
    return load_file(folder / "masks" / f"step_{step:06d}.safetensors")["log_alpha"]


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of a run's ranks, rank 0 first."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


@pytest.fixture(scope="module")
def both(local: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """One process that accumulates twice, two processes, and what the two printed."""
    one, two, logs = (tmp_path_factory.mktemp(name) for name in ("one", "two", "logs"))
    every = "callbacks.checkpoint_every=1"
    call(*settings(local, one, *ONE, every, "logger=none"))
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"TORCHELASTIC_RUN_ID": "two", "CIRCUITLIT_RUN_ID": "two"}  # as torchrun tells its processes
    processes = [
        forked.start(
            logs / rank,
            *settings(local, two, *TWO, every, "logger=wandb_offline"),
            environment=common | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    for rank, process in zip("01", processes, strict=True):
        forked.finished(process, logs / rank)
    return one, two, "".join((logs / rank).read_text() for rank in "01")


@pytest.mark.long
def test_two_processes_learn_the_masks_of_one(both: tuple[Path, Path, str]) -> None:
    one, two, _ = both
    assert same_masks.main(one, two) == 0
    assert not torch.equal(masks(one), masks(one, 0))
    for step in (4, 8, 12):
        torch.testing.assert_close(masks(two, step), masks(one, step), rtol=1e-6, atol=1e-6)
    assert torch.equal(Circuit.load(one).kept, Circuit.load(two).kept)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    for kind in ("random", "shuffled", "full", "corrupted"):
        assert results[0][kind]["kl"] == pytest.approx(results[1][kind]["kl"], rel=1e-5, abs=1e-7)
    for key in ("kl", "faithfulness", "accuracy"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5, abs=1e-7), key
    assert all(results[0][key] == results[1][key] for key in ("n_pairs", "steps", "status", "n_edges_reachable"))


def test_one_process_writes(both: tuple[Path, Path, str]) -> None:
    one, two, out = both
    assert {p.name for p in two.iterdir()} - {"wandb"} == {p.name for p in one.iterdir()}
    assert len(list((two / "wandb").glob("offline-run-*"))) == 1
    assert out.count("Training masks for 12 steps") == 1
    rows = [json.loads((folder / "history.json").read_text())["rows"] for folder in both[:2]]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def count_barriers(local: Path, folder: Path, rank: int) -> None:
    """A barrier makes the host wait for its GPU, which then has nothing to do while the next step is being prepared."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "two"}
    counts, barrier = [0, 0], dist.barrier
    for place, steps in enumerate((6, 18)):
        off = [f"callbacks.{name}=0" for name in ("probe_every", "checkpoint_every")]
        given = [*settings(local, folder, *TWO), *off, "logger=none", "mask.init_from=null", "mask.init=equal"]
        more = [f"mask.schedule.steps={steps}", f"trainer.default_root_dir={folder}", "callbacks.snapshot_every=100"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", [*given, *more])
        bench = build_workbench(cfg, build_subject(cfg))

        def counted(*args: object, place: int = place, **kwargs: object) -> object:
            counts[place] += 1
            return barrier(*args, **kwargs)

        dist.barrier = counted
        learn(cfg, bench, None, folder / str(rank))
        dist.barrier = barrier
    assert counts[0] == counts[1]


def test_no_step_waits_for_the_others_on_the_host(local: Path, tmp_path: Path) -> None:
    in_two_processes(lambda rank: count_barriers(local, tmp_path, rank), tmp_path)


def test_whoever_is_told_stops_all(tmp_path: Path) -> None:
    def told(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        assert [anyone(rank == number) for number in (0, 1, 2)] == [True, True, False]

    in_two_processes(told, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_1", "deepspeed_2", "deepspeed_3", "fsdp"])
def test_every_strategy_learns_the_same_masks(
    strategy: str, both: tuple[Path, Path, str], local: Path, tmp_path: Path
) -> None:
    """DeepSpeed runs on its CPU accelerator."""
    more = [f"strategy={strategy}", "callbacks.checkpoint_every=1", "logger=none"]
    code, _, errors = end(start(local, tmp_path, *TWO, *more), 500)
    assert code == 0, errors
    assert same_masks.main(both[0], tmp_path) == 0
    for step in (4, 8, 12):
        torch.testing.assert_close(masks(tmp_path, step), masks(both[0], step), rtol=1e-5, atol=1e-5)
    assert torch.equal(Circuit.load(both[0]).kept, Circuit.load(tmp_path).kept)
    if strategy in ("deepspeed_3", "fsdp"):
        held = re.findall(r"this process holds ([\d.]+) % of the weights", (tmp_path / "train.log").read_text())
        assert len(held) == 1 and 49 < float(held[0]) < 55
        checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert list(checkpoint["state_dict"]) == ["log_alpha"]


@pytest.mark.slow
def test_kill_one_of_two_then_resume_on_two_and_on_one(local: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert end(start(local, whole, *LONG, *ONE, "logger=none"))[0] == 0
    process = start(local, broken, *LONG, *TWO, "logger=none")
    wait_for(process, broken / "checkpoints" / "step_000100.ckpt")
    os.kill(children_of(process)[1], signal.SIGKILL)
    assert end(process)[0] == 128 + signal.SIGKILL
    saved = sorted((broken / "checkpoints").glob("step_*.ckpt"))[-2]
    for name, devices in (("two", TWO), ("one", ONE)):
        code, _, errors = end(start(local, tmp_path / name, *LONG, *devices, "logger=none", f"ckpt_path={saved}"))
        assert code == 0, errors
        torch.testing.assert_close(masks(tmp_path / name, 400), masks(whole, 400), rtol=1e-5, atol=1e-5)
        assert torch.equal(Circuit.load(tmp_path / name).kept, Circuit.load(whole).kept)
    command = [sys.executable, "-m", "circuitlit", "train", f"resume={broken}"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(masks(broken, 400), masks(whole, 400), rtol=1e-5, atol=1e-5)
    assert torch.equal(Circuit.load(broken).kept, Circuit.load(whole).kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first,then,devices", [("ddp", "fsdp", 4), ("fsdp", "deepspeed_3", 4), ("deepspeed_3", "cpu", 1)]
)
def test_two_processes_go_on_as_four_or_as_one(
    first: str, then: str, devices: int, both: tuple[Path, Path, str], local: Path, tmp_path: Path
) -> None:
    """From the checkpoint of step 4, with as many micro-batches in a step, under another engine."""

    def run(name: str, strategy: str, number: int, *more: str) -> Path:
        shared = ["data.batch_size=2", f"trainer.accumulate_grad_batches={4 // number}", "trainer.accelerator=cpu"]
        given = [*shared, f"strategy={strategy}", f"strategy.options.devices={number}", "logger=none", *more]
        code, _, errors = end(start(local, tmp_path / name, *given))
        assert code == 0, errors
        return tmp_path / name

    whole = run("whole", first, 2)
    rest = run("rest", then, devices, f"ckpt_path={whole}/checkpoints/step_000004.ckpt")
    assert not (rest / "masks" / "step_000004.safetensors").exists()
    torch.testing.assert_close(masks(rest), masks(whole), rtol=1e-5, atol=1e-5)
    assert torch.equal(Circuit.load(rest).kept, Circuit.load(whole).kept)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, local: Path, tmp_path: Path) -> None:
    """SIGTERM comes to the process that was started, Ctrl-C to all of a terminal's."""
    process = start(local, tmp_path, *LONG, "mask.schedule.steps=4000", *TWO, "logger=none")
    wait_for(process, tmp_path / "checkpoints" / "step_000005.ckpt")
    if number == signal.SIGTERM:
        process.terminate()
    else:
        os.killpg(process.pid, number)
    code, _, errors = end(process)
    assert code == 128 + number, errors
    lines = re.findall(r"at step (\d+); saved; go on with: python -m circuitlit train resume=(\S+)", errors)
    assert len(lines) == 1 and lines[0][1] == str(tmp_path), errors
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == int(lines[0][0]) and list(saved["state_dict"]) == ["log_alpha"]


def test_another_number_of_pairs_in_a_step_is_refused(
    both: tuple[Path, Path, str], local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["strategy=cpu", "logger=none", f"ckpt_path={both[1]}/checkpoints/step_000004.ckpt"]
    assert "accumulate_grad_batches x devices): 8 then, 4 now" in failure(capsys, *settings(local, tmp_path, *more))


BAD = {
    "no number": (["strategy.options.devices=0"], "train", "strategy.options.devices=0"),
    "GPUs that are not there": (
        ["strategy.options.devices=64", "trainer.accelerator=auto"],
        "train",
        "GPUs are visible",
    ),
    "another verb": ([], "study", "study runs on one device"),
    "weights in parts": (["strategy=fsdp", "strategy.options.devices=1"], "study", "study needs whole weights"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_devices_get_one_sentence(
    name: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, verb, words = BAD[name]
    assert words in failure(capsys, *settings(local, tmp_path, "logger=none", *TWO, *more), verb=verb)
