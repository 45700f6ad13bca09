"""Several processes of one run: how they are started, which of them writes, how they end together.

A run on several devices is one process for each, told apart by the variables that torchrun sets. Called without these,
a run starts its own processes on this machine; with several machines torchrun does (launch/slurm.sbatch).
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from circuitlit.errors import UserError

GRACE = 20  # seconds between asking a process to end and ending it
VERBS = ("train", "attribute", "bench", "prompts")  # that work on several devices


def rank() -> int:
    """Which of the run's processes this is; 0 writes."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def started_by_launcher() -> bool:
    """True in a process that torchrun or `spawn` has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_writer() -> bool:
    """True in the one process that writes files and prints."""
    return rank() == 0


def one_goes_on(bench: Any) -> bool:
    """Once all processes have the same result: let the others go, unless sharded weights need all in every forward.

    Returns:
        False in a process that is done.
    """
    if bench.model.shards is None:
        leave()
        return is_writer()
    return True


def hydra_overrides() -> list[str]:
    """What Hydra is told in all processes but the first: write no log."""
    return [] if is_writer() else ["hydra/job_logging=disabled"]


def processes(cfg: DictConfig) -> int:
    """How many processes `strategy.options.devices` asks for on this machine.

    Raises:
        UserError: not a number of at least 1, or more GPUs than there are.
    """
    import torch

    wanted, on_cpu = cfg.strategy.options.devices, cfg.trainer.accelerator == "cpu"
    gpus = 0 if on_cpu else torch.cuda.device_count()
    if wanted in ("auto", -1):
        return max(1, gpus)
    if not isinstance(wanted, int) or wanted < 1:
        raise UserError(f"strategy.options.devices={wanted} is not a number of processes; give 1, 2, ... or auto")
    if wanted > 1 and not on_cpu and wanted > gpus:
        raise UserError(
            f"strategy.options.devices={wanted} but {gpus} GPUs are visible; lower it, or set trainer.accelerator=cpu"
        )
    return wanted


def planned(cfg: DictConfig) -> int:
    """The number of processes that a run is reckoned for; it need not be one that this machine can start."""
    if started_by_launcher():
        return world()
    wanted = cfg.strategy.options.devices
    return wanted if isinstance(wanted, int) and wanted > 0 else processes(cfg)


def wanted_here(cfg: DictConfig) -> int:
    """The number of processes that this one has to start; 1 is none."""
    return 1 if started_by_launcher() or cfg.get("plan") else processes(cfg)


def trainer_options(cfg: DictConfig) -> dict[str, Any]:
    """The strategy's options for the Trainer, with the number of processes that there are."""
    options = instantiate(cfg.strategy.options)
    if not started_by_launcher():
        return dict(options)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world()))
    return {**options, "devices": here, "num_nodes": world() // here}


def check(cfg: DictConfig, verb: str) -> None:
    """Refuse what several processes cannot do.

    Raises:
        UserError: a sweep or another verb on several devices or with weights in parts, or several machines without a
            common run id.
    """
    if cfg.strategy.get("shard") and verb not in VERBS:
        raise UserError(f"{verb} needs whole weights; set strategy=single")
    number = world() if started_by_launcher() else wanted_here(cfg)
    if number == 1:
        return
    if cfg.get("bench", "step") != "step":
        raise UserError(f"bench={cfg.bench} runs on one device; set strategy=single")
    if verb not in VERBS:
        raise UserError(f"{verb} runs on one device; set strategy=single (launch/sweep.sbatch runs many jobs at once)")
    mode = HydraConfig.get().mode
    if mode is not None and mode.name == "MULTIRUN":
        raise UserError("a sweep runs its jobs on one device each; set strategy=single, or use launch/sweep.sbatch")
    if started_by_launcher() and "CIRCUITLIT_RUN_ID" not in os.environ:
        raise UserError("processes started by torchrun need one run id; export CIRCUITLIT_RUN_ID=NAME ahead of it")


def spawn(cfg: DictConfig, argv: Sequence[str]) -> int:
    """Run this command once for each device of this machine, and wait.

    If one process fails all are ended.

    Args:
        cfg: the run's settings.
        argv: `sys.argv` of the command.

    Returns:
        The exit status of the process that failed first, else 0.
    """
    number = processes(cfg)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = [sys.executable, *(["-m", spec.name] if spec else [argv[0]]), *argv[1:]]
    common = {
        **os.environ,
        "CIRCUITLIT_RUN_ID": str(cfg.run_id),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "TORCHELASTIC_RUN_ID": str(cfg.run_id),  # Lightning then reads ranks from the environment
    }
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    children = [
        subprocess.Popen(command, env={**common, "RANK": str(place), "LOCAL_RANK": str(place)})
        for place in range(number)
    ]
    with _passed_on(children):
        try:
            return _wait(children)
        finally:
            end(children)


def join(device: Any, alone: bool = False) -> None:
    """Meet the other processes ahead of the Trainer, which then finds them met.

    Args:
        device: this process's.
        alone: True makes a group of one process, too: engines want one.
    """
    import torch.distributed as dist

    if dist.is_initialized() or not (alone or world() > 1):
        return
    meeting = None if started_by_launcher() else f"tcp://127.0.0.1:{free_port()}"
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank(), world_size=world())


def anyone(said: bool) -> bool:
    """Whether any process says so; each must call this. Asked on the CPU, so that no GPU waits."""
    import torch
    import torch.distributed as dist

    if world() == 1:
        return said
    total = torch.tensor(int(said))
    dist.all_reduce(total, group=_cpu_group(dist.group.WORLD))
    return bool(total)


@functools.lru_cache(1)
def _cpu_group(everybody: Any) -> Any:
    """All processes, met without their GPUs."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


def mean_over_ranks(values: Any, weight: float, device: Any) -> Any:
    """The mean of every process's values, weighted; each must call this."""
    import torch
    import torch.distributed as dist

    total = torch.cat([values.flatten().double() * weight, torch.tensor([weight], dtype=torch.float64)]).to(device)
    dist.all_reduce(total)
    return (total[:-1] / total[-1]).view(values.shape).to(values)


def leave() -> None:
    """Part from the other processes, once nothing is done together any more."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or for the first that fails."""
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.05)


def end(children: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs: those that wait for a lost process would wait for ever."""
    deadline = time.monotonic() + GRACE
    for child in children:
        try:  # one that stops of itself, like the rest, says so first
            child.wait(0.5)
        except subprocess.TimeoutExpired:
            child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _passed_on(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass SIGTERM and Ctrl-C on to all children while the block runs; they take what comes twice as once."""

    def forward(number: int, _: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
