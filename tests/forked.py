"""Runs in processes of their own, forked from one that has done the imports: those take longer than a tiny run."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["circuitlit.cli.main", "circuitlit.run.train", "hydra", "pandas", "plotly.graph_objects"]
)


def start(log: Path, *argv: str, verb: str = "train", environment: Mapping[str, str] | None = None) -> BaseProcess:
    """A verb in a process of its own, one thread; what it prints goes to `log`."""
    process = _SERVER.Process(target=_run, args=(log, verb, argv, dict(environment or {})))
    process.start()
    return process


def finished(process: BaseProcess, log: Path, timeout: float = 120) -> None:
    """Wait for a process that must end well."""
    process.join(timeout)
    assert process.exitcode == 0, log.read_text()[-2000:]


def _run(log: Path, verb: str, argv: tuple[str, ...], environment: dict[str, str]) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    import torch
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from circuitlit import progress
    from circuitlit.cli import ranks
    from circuitlit.cli.main import run_verb

    torch.set_num_threads(1)
    rank_zero_only.rank, progress.CONSOLE.quiet = ranks.rank(), not ranks.is_writer()  # read at import, before the fork
    sys.argv = [f"{verb}.py", *argv]
    run_verb(verb, list(sys.argv))
